"""What ``systemd-analyze security`` still counts against our units, and why each of it has to be so."""

from __future__ import annotations

import json

from machine.edge import AGENT, RUNNER
from machine.guest import Guest

_BOTH = {
    "RootDirectoryOrRootImage": "it lives on the machine's own file system: configuration, certificates, task runtime",
    "PrivateNetwork": "the network is its purpose",
    "IPAddressDeny": "where the server is, only the administrator knows; IPAddressAllow= in a drop-in narrows it",
    "RestrictAddressFamilies_AF_INET_INET6": "the network is its purpose",
    "RestrictAddressFamilies_AF_UNIX": "journal, control socket and runner are local sockets",
    "RestrictAddressFamilies_AF_NETLINK": "resolvers and psutil ask the kernel for addresses and interfaces with it",
    "PrivateUsers": "the kernel would show all other users as nobody, so peers of sockets could not be told apart",
    "ProcSubset": "load, memory and boot id are read from /proc",
    "DeviceAllow": "the read-only clock device that ProtectClock= itself allows",
}

OPEN: dict[str, dict[str, str]] = {
    AGENT: _BOTH,
    RUNNER: {
        **_BOTH,
        "Delegate": "one cgroup per task, with limits of its own",
        "ProtectControlGroups": "it makes those cgroups",
        "ProtectSystem": "tasks write where the administrator lets edge-task write; /usr, /boot and /etc are read-only",
        "ProtectProc": "task processes are undumpable, and it would hide those even from the runner, their parent",
        "ProtectHome": "Dag bundles and data may be below /home; ordinary permissions decide",
        "MemoryDenyWriteExecute": "just-in-time compilers (numba, PyTorch, Java, Node) need it",
        "SystemCallFilter_privileged": "programs that tasks start call chown and the like, and the kernel refuses them",
        "SystemCallFilter_resources": "tasks set their own niceness, CPU affinity and limits downwards",
        "UMask": "logs and results have to be readable for the agent's group",
    },
}
"""By unit and directive: why it is left open."""


def left_open(guest: Guest, unit: str) -> tuple[float, list[str]]:
    """Return the exposure of an installed unit, and the directives that it comes from."""
    lines = json.loads(_analyze(guest, unit, "--json=short"))
    score = _analyze(guest, unit, "--no-pager").strip().splitlines()[-1]
    names = [line["json_field"] for line in lines if line["exposure"] is not None and float(line["exposure"]) > 0]
    return float(score.partition(":")[2].split()[0]), names


def table(guest: Guest, unit: str) -> str:
    """Return what is left open as a table in Markdown."""
    score, names = left_open(guest, unit)
    rows = [f"| `{name}` | {OPEN[unit][name]} |" for name in names]
    return "\n".join([f"Exposure {score:g}.", "", "| left open | because |", "| --- | --- |", *rows, ""])


def _analyze(guest: Guest, unit: str, *options: str) -> str:
    return guest.run("systemd-analyze", "security", "--offline=yes", *options, unit)
