"""Measures what an edge agent costs: CPU, memory, requests, latency."""
