"""``edgectl config``."""

from __future__ import annotations

import argparse
import json

from airflow_edge_agent.configuration import ConfigError, as_toml_value, load, shown
from airflow_edge_agent.ctl.main import BAD_CONFIG, OK
from airflow_edge_agent.ctl.terminal import complain, out, plain, table


def config(arguments: argparse.Namespace) -> int:
    """Check or show the configuration."""
    try:
        loaded = load(arguments.config, {}, unenrolled=True)
    except ConfigError as error:
        for line in str(error).splitlines():
            complain(plain(line))
        return BAD_CONFIG
    if arguments.what == "check":
        if not arguments.quiet:
            files = ", ".join(str(file) for file in loaded.files) or "no files"
            out(f"the configuration is usable ({files})")
            if not loaded.enrolled:
                out("server_url is missing: the agent is not enrolled, run `edgectl enroll`")
        return OK
    settings = shown(loaded)
    if arguments.json:
        out(json.dumps([{"name": s.name, "value": s.value, "origin": s.origin} for s in settings]))
    elif arguments.origin:
        for line in table(
            ["SETTING", "VALUE", "ORIGIN"], [[s.name, plain(as_toml_value(s.value)), s.origin] for s in settings]
        ):
            out(line)
    else:
        for setting in settings:
            out(f"{setting.name} = {plain(as_toml_value(setting.value))}")
    return OK
