"""Edge agent for Apache Airflow: a small daemon that runs an Airflow's tasks where the machines are."""

__version__ = "0.1.0"
