"""Migrations of our tables. Run by Airflow's database commands."""
