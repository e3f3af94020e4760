"""Everything that is written for people: manual pages, completions, the default configuration, made from the code."""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepack import completion, default_file, manpage, programs, settings_model
from edgepack.stage import Stage

DEFAULTS_IN_WORDS = {
    "name": "the host's name",
    "concurrency": "the number of cores",
    "runtime_dir": "run below state_dir; under systemd /run/airflow-edge-agent",
    "state_dir": "/var/lib/airflow-edge-agent for root and under systemd",
}
EXAMPLES = {
    "server_url": '"https://airflow.example.com"',
    "name": '"press-07"',
    "concurrency": "4",
    "state_dir": '"/var/lib/airflow-edge-agent"',
    "runtime_dir": '"/run/airflow-edge-agent"',
    "execution_api_url": '"https://airflow.example.com/execution/"',
    "ca_file": '"/etc/airflow-edge-agent/ca.pem"',
    "client_cert": '"/etc/airflow-edge-agent/client.pem"',
    "client_key": '"/etc/airflow-edge-agent/client.key"',
    "tls_server_name": '"airflow.example.com"',
    "bundles.NAME.path": '"/srv/dags"',
    "bundles.NAME.classpath": '"airflow.providers.git.bundles.git.GitDagBundle"',
    "runner.dir": '"/var/lib/edge-runner"',
    "control.socket": '"/run/airflow-edge-agent/control.sock"',
    "control.read_group": '"adm"',
    "metrics.listen": '"127.0.0.1:9464"',
    "health.disk_percent.enter": "95",
    "health.disk_percent.leave": "90",
    "health.memory_percent.enter": "95",
    "health.memory_percent.leave": "90",
    "health.load_per_core.enter": "4",
    "health.load_per_core.leave": "2",
    "health.temperature_celsius.enter": "85",
    "health.temperature_celsius.leave": "75",
    "custom_metrics.NAME.command": '["/usr/local/bin/press-state", "--json"]',
    "runtime_python": '"/opt/airflow-edge-runtime/bin/python"',
    "limits.memory_max": '"4G"',
    "limits.memory_high": '"3G"',
    "limits.cpu_quota": '"200%"',
    "limits.pids_max": "512",
    "limits.io_weight": "100",
    "limits.maximum.memory_max": '"8G"',
    "limits.maximum.memory_high": '"6G"',
    "limits.maximum.cpu_quota": '"400%"',
    "limits.maximum.pids_max": "2048",
    "limits.maximum.io_weight": "500",
    "limits.queues.NAME.memory_max": '"512M"',
    "limits.queues.NAME.memory_high": '"448M"',
    "limits.queues.NAME.cpu_quota": '"50%"',
    "limits.queues.NAME.pids_max": "64",
    "limits.queues.NAME.io_weight": "50",
    "runner.socket": '"/run/edge-runner/runner.sock"',
}
_SUMMARIES = {
    "edge-agent": (8, "run tasks of a central Apache Airflow on this machine"),
    "edge-runner": (8, "start and supervise the tasks of an edge agent"),
    "edgectl": (1, "look at an edge agent and change what it does"),
}
_PAGES = ("edge-agent(8)", "edge-runner(8)", "edgectl(1)", "agent.toml(5)")
_FILES = (
    ("/etc/airflow-edge-agent/agent.toml", "Configuration, see agent.toml(5)."),
    ("/etc/airflow-edge-agent/conf.d/*.toml", "More of it, read in the order of their names."),
    ("/etc/airflow-edge-agent/token", "The agent's token. Keep it to yourself."),
    ("/etc/default/edge-agent", "Variables for the service, proxies for example."),
    ("/var/lib/airflow-edge-agent", "State: who this agent is, and jobs that the server does not have all of."),
    ("/opt/airflow-edge-runtime", "The task runtime: Task SDK and providers."),
)
_ABOUT_SETTINGS = """\
The agent reads /etc/airflow-edge-agent/agent.toml, then conf.d/*.toml beside it in the order of their names, then \
EDGE_AGENT_* variables, then its flags; what is read later wins. Unknown settings are errors.

The file is TOML. In a variable's name two underscores stand between a table and a setting; lists and tables are given \
as JSON.

'edgectl config check' checks it without touching the agent; 'systemctl reload edge-agent' applies it.
"""


@dataclass(frozen=True, slots=True)
class Documents:
    """All texts of one version.

    :param pages: name of the file, like ``edgectl.1``, to its text.
    :param completions: program to shell to text.
    """

    pages: Mapping[str, str]
    completions: Mapping[str, Mapping[str, str]]
    configuration: str


def make(entries: Mapping[str, str], *, version: str, epoch: int) -> Documents:
    """Make all texts from the installed agent.

    :param entries: program to ``module:function``.
    :raises BuildError: something in the code is not described.
    """
    # Only here: the build of the runtime does not need the agent.
    from airflow_edge_agent import settings  # noqa: PLC0415

    date = dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%d")
    pages: dict[str, str] = {}
    completions: dict[str, dict[str, str]] = {}
    for name, entry in sorted(entries.items()):
        command = programs.load(entry)
        section, summary = _SUMMARIES[name]
        others = [page for page in _PAGES if not page.startswith(f"{name}(")]
        pages[f"{name}.{section}"] = manpage.program_page(
            command, section=section, summary=summary, version=version, date=date, files=_FILES, see_also=others
        )
        if name != "edge-runner":  # nobody types it
            completions[name] = {shell: getattr(completion, shell)(command) for shell in ("bash", "zsh", "fish")}
    sections = settings_model.read(settings.Settings, DEFAULTS_IN_WORDS)
    pages["agent.toml.5"] = manpage.settings_page(
        sections,
        version=version,
        date=date,
        about=_ABOUT_SETTINGS,
        see_also=list(_PAGES[:3]),
        prefix=settings.ENV_PREFIX,
    )
    return Documents(pages, completions, default_file.render(sections, EXAMPLES))


def put(documents: Documents, stage: Stage, *, package: str) -> None:
    """Put all texts where each system looks for them."""
    for name, text in documents.pages.items():
        stage.write(f"/usr/share/man/man{name[-1]}/{name}.gz", zipped(text))
    for program, shells in documents.completions.items():
        stage.write(f"/usr/share/bash-completion/completions/{program}", shells["bash"])
        stage.write(f"/usr/share/zsh/vendor-completions/_{program}", shells["zsh"], only="deb")
        stage.write(f"/usr/share/zsh/site-functions/_{program}", shells["zsh"], only="rpm")
        stage.write(f"/usr/share/fish/vendor_completions.d/{program}.fish", shells["fish"])
    installed = f"/etc/{package}/agent.toml"
    stage.write(installed, documents.configuration)
    stage.configuration.add(installed)


def write_to(documents: Documents, folder: Path) -> None:
    """Write all texts into one folder, to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    for program, shells in documents.completions.items():
        for shell, text in shells.items():
            (folder / f"{program}.{shell}").write_text(text, encoding="utf-8")
    (folder / "agent.toml").write_text(documents.configuration, encoding="utf-8")


def zipped(text: str) -> bytes:
    """Compress as Debian wants it: as small as it gets, and without a time or name."""
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)
