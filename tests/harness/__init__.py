"""Real processes for demo, integration tests and bench: a real Airflow, real agents.

Needs the standard library, httpx and psutil only, so that it also runs in an agent's environment.
"""
