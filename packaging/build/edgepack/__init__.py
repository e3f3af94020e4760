"""Builds airflow-edge-agent's packages for Debian and RPM systems from one description, ``packaging/packages.toml``."""
