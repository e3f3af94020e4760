"""What becomes of running tasks when the link to Airflow is cut for a long time."""
