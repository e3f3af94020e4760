"""One file per revision; their numbers give the order for people, their ids for Alembic."""
