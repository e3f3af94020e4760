"""The warm runner: a program of the task runtime's Python that forks one process per job.

It uses the standard library and the Task SDK only, and never imports the rest of this distribution: the environment it
runs in does not contain it. ``__main__`` loads this directory as the package ``airflow_edge_runner``.
"""
