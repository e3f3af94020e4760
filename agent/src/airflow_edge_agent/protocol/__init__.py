"""What agent and server say to each other: frames, states and their rules.

Shared by both distributions, so it imports nothing but the standard library and pydantic.
"""

PROTOCOL_VERSION = 1
"""Newest protocol revision this code speaks."""

PROTOCOL_OLDEST = 1
"""Oldest protocol revision this code still understands."""

API_PREFIX = "/edge-agents"
"""Where the agent API is mounted below Airflow's base URL."""

EXCHANGE_PATH = "/v1/exchange"
"""The HTTP exchange carrier, below :data:`API_PREFIX`."""

CHANNEL_PATH = "/v1/channel"
"""The WebSocket carrier, below :data:`API_PREFIX`."""

ENROLL_PATH = "/v1/enroll"
"""Where a join token is exchanged for a credential, below :data:`API_PREFIX`."""
