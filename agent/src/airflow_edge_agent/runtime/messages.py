"""The main events in the agent's log, with ids by which the journal's catalogue explains them.

``python -m airflow_edge_agent.runtime.messages`` prints the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """An event and what the journal's catalogue says about it."""

    message_id: str
    subject: str
    text: str


EVENTS: dict[str, Message] = {
    "agent_started": Message(
        "cdda8773506f46c8a0c86c83ae1e646e",
        "The edge agent has started",
        "The daemon has read its configuration and listens for edgectl. It connects to the server by itself.",
    ),
    "agent_ended": Message(
        "2f321a4d46ae4626b98375cbecbbe4d6",
        "The edge agent has ended",
        "Tasks that the log names as left behind go on in the runner; the next start takes them over.",
    ),
    "not_enrolled": Message(
        "3d522801a6c64654b99d36380c6bb5dc",
        "The edge agent has no credential or no server",
        "Make a join token on the server (airflow edge-agents enroll --name NAME) and give it to\n"
        "edgectl enroll URL. The daemon takes it up without a restart.",
    ),
    "connected": Message(
        "a6bed5a47216485fb5e2a8819089550b",
        "The edge agent is connected to @EDGE_SERVER@",
        "Jobs are offered from now on, unless the agent is in maintenance or drained.",
    ),
    "disconnected": Message(
        "df0af2ff5d8f4978b64d6a5c8d2bdd41",
        "The edge agent is not connected to its server",
        "Running tasks go on; their results and logs wait on disk. The agent keeps trying.\n"
        "edgectl doctor says what stands in the way.",
    ),
    "job_started": Message(
        "050cb8adf55c4b138fd30e9d2b24525e", "Task @EDGE_TASK@ has started", "edgectl logs @EDGE_JOB_ID@ shows its log."
    ),
    "job_ended": Message(
        "ab7ce495c188447ebf1a33b39a24084a",
        "Task @EDGE_TASK@ has ended",
        "Its result and log are kept until the server has them.",
    ),
    "maintenance_on": Message(
        "872fb487de844cf6b909e20c130e4592",
        "The edge agent is in maintenance",
        "It takes no new jobs; running ones go on. edgectl maintenance off ends it, as does the server.",
    ),
    "maintenance_off": Message(
        "c9bd32eb357146b6a0a4dd017df35a8f", "The edge agent has left maintenance", "It takes jobs again."
    ),
    "drained": Message(
        "f205c0ad02bb4407a569d96d6510a739",
        "The edge agent takes no new jobs",
        "Running ones go on. edgectl resume ends it, as does a restart.",
    ),
    "resumed": Message("4a13e38239044dee941de55721a66e06", "The edge agent takes jobs again", "The drain is over."),
    "reloaded": Message(
        "440dfee5bf0d435288a8ffa6bae31f71",
        "The edge agent has read its configuration again",
        "What the message names as waiting for a restart is not in effect yet.",
    ),
    "reload_failed": Message(
        "cf4c0667d0dd401d8e4618a2942396ff",
        "The edge agent keeps its old configuration",
        "The new one is not usable. edgectl config check says where and why.",
    ),
    "runner_renewed": Message(
        "f040874ffa264986866c06a38e38dd4c",
        "The edge agent renews its runner",
        "The runner's code or its task runtime has changed on disk. New jobs start from what is there now; running\n"
        "ones go on in the runner that they have.",
    ),
    "stopping": Message(
        "fe0af8f00d2d415db61d19dbcb03cdf3",
        "The edge agent is stopping",
        "What it does about running jobs is said by [drain] on_stop; a restart leaves them alone.",
    ),
    "stuck": Message(
        "b0b3a76acfaa45d9b4fda7d253bdbae0",
        "A part of the edge agent is stuck",
        "The service manager's watchdog ends and restarts the daemon. Running tasks are not touched.\n"
        "Please report it with the output of edgectl bugreport.",
    ),
    "credential_refused": Message(
        "28fd2a17dac5401fbdded32642ec1159",
        "The server refuses the edge agent's credential",
        "It was revoked, or is another server's. Enroll again with edgectl enroll, then\nsystemctl start edge-agent.",
    ),
    "credential_renewed": Message(
        "6f0d3d1c1f5b4f0e9a4f4d0f3b7f2c58",
        "The edge agent has a new credential",
        "The one before was getting old. It connects anew, and the server forgets the old one.",
    ),
    "queues_refused": Message(
        "c3d1a5f07a5e4f43a6d2f80a4f9be0b1",
        "The edge agent asks for queues that it was not enrolled for",
        "Have an administrator grant them, or take them out of agent.toml.",
    ),
}
"""By the name that the field EDGE_EVENT carries."""


def catalogue() -> str:
    """Return the text of the journal's message catalogue; see ``journalctl -x``."""
    head = "# Written by python -m airflow_edge_agent.runtime.messages; do not edit."
    entries = [
        f"-- {message.message_id}\nSubject: {message.subject}\nDefined-By: airflow-edge-agent\n\n{message.text}"
        for message in EVENTS.values()
    ]
    return "\n\n".join([head, *entries]) + "\n"


if __name__ == "__main__":
    print(catalogue(), end="")  # noqa: T201 -- the program's output
