"""Server side of airflow-edge-agent: executor, agent API, tables and admin commands for Apache Airflow.

Airflow imports this package in every one of its processes, tasks included: keep it empty.
"""

__version__ = "0.1.0"
