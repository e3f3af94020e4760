"""The demo: a Dag runs on a real edge agent, end to end."""
