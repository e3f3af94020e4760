"""The pages in Airflow's UI, in a real browser, on a real Airflow with real agents."""
