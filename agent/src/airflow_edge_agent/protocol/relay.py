"""How agents relay what jobs ask of Airflow's Execution API: plain HTTP requests beside the frames.

``{server_url}/edge-agents/v1/jobs/{job id}/execution/{path}`` with the agent's own credential and the fence of the job;
method, path, query and body are the job's.
"""

from __future__ import annotations

JOBS_PATH = "/v1/jobs"
"""Below the prefix of the agent API."""

FENCE_HEADER = "edge-agent-fence"
"""Of a request: the fence under which the agent holds the job."""

RELAYED_HEADER = "edge-agent-relayed"
"""Of an answer: it is the Execution API's (``airflow``) or the agent API's own (``refused``), and not that of something
on the way there."""

MAX_RELAYED_BYTES = 256 * 1024 * 1024
"""Most bytes of the body of one request or answer."""

MAX_RELAYED_AT_ONCE = 32
"""Most requests of one agent that are under way."""

REQUEST_HEADERS = frozenset(
    {b"accept", b"accept-encoding", b"airflow-api-version", b"content-length", b"content-type", b"correlation-id",
     b"traceparent", b"tracestate", b"user-agent"}
)  # fmt: skip
"""What is passed on of a job's request. The version tells Airflow which Task SDK speaks."""

RESPONSE_HEADERS = frozenset(
    {b"airflow-api-version", b"content-encoding", b"content-length", b"content-range", b"content-type",
     b"correlation-id", b"retry-after"}
)  # fmt: skip
"""What is passed on of an answer: no token of Airflow's is among it."""
