"""What Airflow learns of this distribution: executor, commands, tables and configuration.

Airflow imports this in every process: keep it free of imports.
"""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the metadata behind the ``apache_airflow_provider`` entry point.

    The plugin is not listed here: it has an entry point of its own, and named twice it would be loaded twice.
    """
    return {
        "package-name": "airflow-edge-server",
        "name": "Edge agents",
        "description": "Runs tasks on agents at remote sites that dial out to Airflow.",
        "executors": ["airflow_edge_server.executor.EdgeExecutor"],
        "cli": ["airflow_edge_server.cli.get_edge_agents_commands"],
        "db-managers": ["airflow_edge_server.store.db.EdgeAgentDBManager"],
        "remote-logging": [{"classpath": "airflow_edge_server.log_io.EdgeLogIO", "scheme": "edge-agent"}],
        "config": {
            "edge_agent": {
                "description": "Edge agents: the API they talk to, and how patient Airflow is with them.\n",
                "options": {
                    "api_enabled": _option(
                        "boolean",
                        "False",
                        "True",
                        "Whether the api-server serves agents, below ``/edge-agents``.\n",
                    ),
                    "heartbeat_interval": _option(
                        "float",
                        "25",
                        "25",
                        "Seconds between two heartbeats of an agent, and the longest wait of one of its requests.\n",
                    ),
                    "lease_seconds": _option(
                        "float",
                        "10",
                        "10",
                        "Seconds that an agent has to accept a job offered to it. After that the job is offered\n"
                        "to another.\n",
                    ),
                    "agent_timeout": _option(
                        "float",
                        "75",
                        "75",
                        "Seconds without contact after which an agent is shown as ``unknown``. Must be longer than\n"
                        "``heartbeat_interval``.\n",
                    ),
                    "disconnect_grace": _option(
                        "float",
                        "300",
                        "300",
                        "Seconds without contact after which the jobs of an agent are ended as lost. A task that\n"
                        "still sends its own heartbeats to Airflow is left alone.\n",
                    ),
                    "reconnect_spread": _option(
                        "float",
                        "2",
                        "2",
                        "Seconds over which agents spread their return after all connections were lost at once.\n"
                        "Raise it for thousands of agents.\n",
                    ),
                    "credential_days": _option(
                        "float",
                        "180",
                        "180",
                        "Days that the credential of an agent is valid. It is replaced by itself when half of them\n"
                        "are over; an agent that is away for longer than the other half has to be enrolled\n"
                        "again. 0: valid for ever, and never replaced.\n",
                    ),
                    "revoke_grace": _option(
                        "float",
                        "86400",
                        "3600",
                        "Seconds that an agent that was revoked with ``--jobs finish`` has to finish the jobs that it\n"
                        "holds. It is shut out as soon as the last of them has ended; those that have not by then are\n"
                        "cancelled.\n",
                    ),
                    "job_retention": _option(
                        "float",
                        "7",
                        "7",
                        "Days that a finished job without a log is kept. One with a log is kept as long as the log.\n",
                    ),
                    "log_retention": _option(
                        "float",
                        "30",
                        "30",
                        "Days that the log of a finished job is kept in the metadata database.\n",
                    ),
                    "log_hand_over": _option(
                        "boolean",
                        "True",
                        "True",
                        "Whether the complete log of a task is handed over to Airflow's remote logging, where that is\n"
                        "configured.\n",
                    ),
                    "handed_over_log_retention": _option(
                        "float",
                        "1",
                        "1",
                        "Days that a log is kept in the metadata database after it was handed over to remote logging,\n"
                        "but not longer than ``log_retention``.\n",
                    ),
                    "max_connections": _option(
                        "integer",
                        "5000",
                        "5000",
                        "Requests and WebSockets of agents that one api-server process has open at a time. Whoever\n"
                        "comes then is answered 503 and comes again.\n",
                    ),
                    "agent_connections": _option(
                        "integer",
                        "8",
                        "8",
                        "Requests and WebSockets that one agent may have open at a time, at least 4. More are\n"
                        "answered 429.\n",
                    ),
                    "agent_requests_per_second": _option(
                        "float",
                        "100",
                        "100",
                        "Requests, or messages on a WebSocket, that one agent may send in the long run; ten times as\n"
                        "many at once. More are answered 429, or end the WebSocket. 0: no bound.\n",
                    ),
                    "wrong_credentials_per_minute": _option(
                        "float",
                        "60",
                        "60",
                        "Wrong credentials that may be tried from one address (of IPv6: one /64 network) in the long\n"
                        "run; twice as many at once. Further ones are answered 429 without being looked at. Agents at\n"
                        "that address whose credential was right before are not affected. 0: no bound.\n",
                    ),
                    "log_max_mb": _option(
                        "float",
                        "200",
                        "200",
                        "Most log of one job, in MiB, that is kept in the metadata database. A line at its end says\n"
                        "that more came and was not kept. 0: no bound.\n",
                    ),
                    "execution_api": _option(
                        "string",
                        "relay",
                        "direct",
                        "How tasks on agents reach Airflow's Execution API. ``relay``: through their agent and the\n"
                        "agent API; no token of Airflow's leaves the server. ``direct``: by themselves, with a token\n"
                        "of their own. An agent may choose ``direct`` for itself.\n",
                    ),
                    "metric_retention": _option(
                        "float",
                        "1",
                        "1",
                        "Days that the measurements of agents' hosts are kept: one a minute and agent.\n",
                    ),
                    "relay_task_metrics": _option(
                        "boolean",
                        "False",
                        "True",
                        "Whether metrics that tasks tell on agents (``relay_statsd`` in an agent's configuration) are\n"
                        "told here as Airflow's own, with the agent's name as a tag.\n",
                    ),
                    "event_retention": _option(
                        "float",
                        "30",
                        "30",
                        "Days that is kept what has happened to agents: connected, lost, in maintenance, ...\n",
                    ),
                    "disconnect_lease": _option(
                        "float",
                        "1800",
                        "1800",
                        "Seconds that an agent may be away while its tasks run on, if it relays the Execution API for\n"
                        "them. After that it ends them, and they are failed here. Begins when the agent is shown as\n"
                        "``unknown``.\n",
                    ),
                    "disconnect_leases": _option(
                        "string",
                        None,
                        "plant-3: 7200, lab: 60",
                        "The same by queue, where it is another.\n",
                    ),
                    "execution_api_url": _option(
                        "string",
                        None,
                        "https://airflow.example.com/execution/",
                        "Where tasks that are not relayed find Airflow's Execution API. Not set: below the server URL\n"
                        "that each agent is configured with.\n",
                    ),
                },
            },
        },
    }


def _option(kind: str, default: str | None, example: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }
