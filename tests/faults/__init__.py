"""The fault suite: a real Airflow and real agents, with a proxy between them that breaks what can break."""
