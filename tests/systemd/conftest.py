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
        machine.start()
        return machine

    yield make
    for machine in machines:
        machine.close()


def _enrolled(machine: NspawnMachine, site: AirflowSite, settings: dict[str, Any] | None = None) -> Edge:
    name = f"machine-{next(_numbers)}"
    edge = Edge(machine, site, name=name, token=site.create_join_token(name))
    edge.configure(settings)
    return edge


@pytest.fixture
def make_edge(
    images: Images, keeper: Keeper, site: AirflowSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeEdge]:
    """Boot machines with an enrolled agent that has never been started.

    They end with the test: all agents serve one queue, and another test's task would run on them.
    """
    machines: list[NspawnMachine] = []

    def make(settings: dict[str, Any] | None = None) -> Edge:
        folder = tmp_path_factory.mktemp("machine") / "m"
        machine = NspawnMachine(folder, keeper=keeper, layers=images.agent(BOOKWORM), prepare=furnish)
        machines.append(machine)
        machine.start()
        return _enrolled(machine, site, settings)

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture(scope="module")
def edge(make_machine: MakeMachine, site: AirflowSite) -> Edge:
    """Return an agent that is enabled, started and connected; the tests of a module share it."""
    edge = _enrolled(make_machine(), site)
    edge.enable()
    return edge
