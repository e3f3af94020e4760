"""The server's decisions, pure: facts in, decisions out. No database, no clock, no Airflow."""
