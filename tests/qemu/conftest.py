"""One machine under QEMU with the agent installed, for all tests: booting one takes half a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.processes import Keeper
from harness.site import AirflowSite
from machine import qemu
from machine.edge import Edge
from machine.fixtures import furnish, images, keeper, need, site, tell_what_happened
from machine.image import BOOKWORM, Images

__all__ = ["images", "keeper", "site", "tell_what_happened"]

LIMITS = {
    "memory_max": "256M",
    "pids_max": 60,
    "cpu_quota": "150%",
}


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    need(qemu.missing())


@pytest.fixture(scope="session")
def edge(images: Images, keeper: Keeper, site: AirflowSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Return an agent that is enabled, started and connected, and whose jobs have limits."""
    machine = qemu.QemuMachine(
        tmp_path_factory.mktemp("qemu") / "m",
        keeper=keeper,
        layers=images.agent(BOOKWORM, bootable=True),
        server_port=site.port,
        prepare=furnish,
    )
    with machine:
        edge = Edge(
            machine,
            site,
            name="machine-qemu",
            token=site.create_join_token("machine-qemu"),
            server_url=f"http://{qemu.SERVER_ADDRESS}:{qemu.SERVER_PORT}",
            patience=qemu.SLOWNESS,
        )
        url = f"http://{qemu.SERVER_ADDRESS}:{qemu.SERVER_PORT}/execution/"
        edge.configure({"execution_api_url": url, "limits": LIMITS, "concurrency": 2})
        edge.enable()
        yield edge
