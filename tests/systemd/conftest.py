"""Machines under systemd-nspawn with the agent installed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.processes import Keeper
from harness.site import AirflowSite
from machine import nspawn
from machine.edge import Edge, MakeEdge, MakeMachine
from machine.fixtures import furnish, images, keeper, need, site, tell_what_happened
from machine.image import BOOKWORM, Images
from machine.nspawn import NspawnMachine

__all__ = ["images", "keeper", "site", "tell_what_happened"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    need(nspawn.missing())


@pytest.fixture(scope="module")
def make_machine(images: Images, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeMachine]:
    """Boot machines; they are ended with the module."""
    machines: list[NspawnMachine] = []

    def make(layers: list[Path] | None = None, prepare: Callable[[Path], None] = furnish) -> NspawnMachine:
        folder = tmp_path_factory.mktemp("machine") / "m"
        machine = NspawnMachine(folder, keeper=keeper, layers=layers or images.agent(BOOKWORM), prepare=prepare)
        machines.append(machine)
        machine.boot()
        return machine

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture(scope="module")
def make_edge(make_machine: MakeMachine, site: AirflowSite) -> MakeEdge:
    """Boot machines with an enrolled agent that has never been started."""

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Edge:
        name = f"machine-{next(_numbers)}"
        edge = Edge(make_machine(**options), site, name=name, token=site.create_agent_token(name))
        edge.configure(settings)
        return edge

    return make


@pytest.fixture(scope="module")
def edge(make_edge: MakeEdge) -> Edge:
    """Return an agent that is enabled, started and connected; the tests of a module share it."""
    edge = make_edge()
    edge.enable()
    return edge
