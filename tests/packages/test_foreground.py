"""The image by the steps of its Containerfile, and its first process: without systemd, as container engines do it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from harness.processes import Keeper
from harness.site import AirflowSite
from harness.waiting import wait_until
from machine.image import BOOKWORM, SOURCE, Images
from packages.conftest import Built, furnish
from packages.container import Root, instructions
from packages.machine import RUNTIMES

RECIPE = SOURCE / "packaging/compose/Containerfile.agent"
NEEDED = ("systemd-standalone-sysusers", "libgcc-s1", "libstdc++6", "zlib1g")
"""Debian's packages that the image's are installed beside; the steps themselves reach no mirror here."""
STATE, RUN = "/var/lib/airflow-edge-agent", "/run/airflow-edge-agent"
UID = 10001


@pytest.fixture(scope="module")
def image(images: Images, built: Built, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the image's layers."""
    base = images.plain(BOOKWORM, NEEDED)
    root = Root(tmp_path_factory.mktemp("image") / "root", [base])
    for path in built.second.glob("*.deb"):
        root.put(path, f"/packages/{path.name}")
    for name in ("sources.list", "sources.list.d"):
        root.run("rm", "-rf", f"/etc/apt/{name}")
    (entrypoint,) = (json.loads(text) for text in instructions(RECIPE, "ENTRYPOINT"))
    for words in (text.split() for text in instructions(RECIPE, "COPY")):
        if words[1] == entrypoint[0]:
            root.put(SOURCE / words[0], words[1], 0o755)
    for script in instructions(RECIPE, "RUN"):
        root.run("sh", "-c", script)
    assert root.run("id", "-u", "edge-agent").strip() == str(UID)
    assert root.run("sh", "-c", "command -v systemctl || echo none").strip() == "none"
    return [root.upper, base]


def compose_options(folder: Path) -> tuple[str, ...]:
    """As Compose: root at first, a volume that belongs to root, a secret that belongs to whoever made it."""
    (folder / "state").mkdir(mode=0o755)
    (folder / "token").chmod(0o600)
    os.chown(folder / "token", 4711, 4711)
    return (f"--bind={folder / 'state'}:{STATE}",)


def kubernetes_options(folder: Path) -> tuple[str, ...]:
    """As the chart's pod: another user, no capabilities, a root that is read only, volumes with the group's mark."""
    for name in ("state", "run", "tmp"):
        (folder / name).mkdir()
        os.chown(folder / name, 0, UID)
        (folder / name).chmod(0o2777)
    os.chown(folder / "token", 0, UID)
    (folder / "token").chmod(0o440)
    binds = {"state": STATE, "run": RUN, "tmp": "/tmp"}
    return (
        "--read-only", "--user=edge-agent", "--no-new-privileges=yes", "--drop-capability=all",
        *(f"--bind={folder / name}:{inside}" for name, inside in binds.items()),
    )  # fmt: skip


ENGINES = {"compose": compose_options, "kubernetes": kubernetes_options}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_image_runs_an_agent_in_the_foreground(
    image: list[Path], site: AirflowSite, keeper: Keeper, tmp_path: Path, engine: str
) -> None:
    name = f"foreground-{engine}"
    root = Root(tmp_path / "root", image)
    furnish(root.upper)
    errands = tmp_path / "errands"
    (errands / name).mkdir(parents=True)
    (errands / name).chmod(0o1777)
    (errands / name / "go").touch()
    (tmp_path / "token").write_text(site.create_join_token(name) + "\n")
    # What an engine makes by itself.
    for inside in ("run/secrets", STATE.lstrip("/"), RUN.lstrip("/")):
        (root.upper / inside).mkdir(parents=True)
    variables = {
        "EDGE_AGENT_SERVER_URL": site.url,
        "EDGE_AGENT_NAME": name,
        "JOIN_TOKEN_FILE": "/run/secrets/token",
        "EDGE_AGENT_BUNDLES": '{"errands": {"path": "/srv/dags"}, "late": {"path": "/srv/late"}}',
    }
    binds = (f"--bind={errands}:/srv/errands", f"--bind-ro={tmp_path / 'token'}:/run/secrets/token")
    (entrypoint,) = (json.loads(text) for text in instructions(RECIPE, "ENTRYPOINT"))
    process = root.start(keeper, *entrypoint, variables=variables, options=(*ENGINES[engine](tmp_path), *binds))
    wait_until(
        lambda: "connected" in process.tail(50) or not process.running,
        seconds=60,
        what="the agent to be welcomed",
        seen=lambda: process.tail(30),
    )
    assert process.running, process.tail(30)

    run_id = site.api.trigger_dag("late", run_id=name, conf={"name": name})
    state = site.api.wait_for_run("late", run_id, seconds=180)
    assert state == "success", process.tail(30)
    assert site.api.xcom("late", run_id, "late")["prefix"].startswith(f"{RUNTIMES}/")
    # One process that was exec'ed, as the agent's user.
    agent = next(child for child in psutil.Process(process.pid).children(recursive=True) if is_agent(child))
    assert agent.uids().effective == UID
    agent.send_signal(signal.SIGTERM)
    wait_until(lambda: not process.running, seconds=60, what="the container to end", seen=lambda: process.tail(10))
    root.tidy()
    assert process.exit_code == 0


def is_agent(process: psutil.Process) -> bool:
    """Is it the daemon, and not what it was started by?"""
    return any(word.endswith("/edge-agent") for word in process.cmdline()[:4]) and "run" in process.cmdline()
