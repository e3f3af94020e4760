"""What lasts as long as a ``with``: servers and machines."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Lasting(abc.ABC):
    """Is started when the ``with`` begins, and closed when it ends or when it could not be started."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, and wait until it can be used."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it. Also called when it was started in part, or not at all."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
