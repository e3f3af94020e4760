"""The agent API: what agents talk to, inside of Airflow's api-server."""
