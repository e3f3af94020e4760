"""Maintenance on disk: it survives restarts and reboots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.core.maintenance import MaintenanceMemory
from airflow_edge_agent.ports import StoreError

FILE = "maintenance.json"

_memory: TypeAdapter[Any] = TypeAdapter(MaintenanceMemory)


class MaintenanceFile:
    """One file in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE

    def load(self) -> MaintenanceMemory:
        """Read what was kept; nothing if there is nothing.

        :raises StoreError: it cannot be read or understood.
        """
        try:
            content = self._path.read_bytes()
            memory: MaintenanceMemory = _memory.validate_json(content)
        except FileNotFoundError:
            return MaintenanceMemory()
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
        except ValidationError:
            raise StoreError(
                f"{self._path}: is damaged; it is ignored: use `edgectl maintenance on` if it was meant"
            ) from None
        return memory

    def save(self, memory: MaintenanceMemory) -> None:
        """Keep it.

        :raises StoreError: e.g. the disk is full; what was kept before stays.
        """
        try:
            if memory == MaintenanceMemory():
                self._path.unlink(missing_ok=True)
            else:
                write_atomically(self._path, _memory.dump_json(memory).decode())
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
