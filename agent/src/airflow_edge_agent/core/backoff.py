"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Backoff:
    """Exponential back-off with jitter: each wait is drawn between half and all of a growing bound.

    The jitter spreads a fleet's reconnects after an outage of the server.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    tries: int = 0

    def next_seconds(self, chance: float, *, at_least_seconds: float = 0.0) -> float:
        """Count a failed try and return the wait.

        :param chance: uniformly drawn from [0, 1).
        :param at_least_seconds: what the server asked for, if it did.
        """
        bound = min(self.longest_seconds, self.first_seconds * 2.0 ** min(self.tries, 16))
        self.tries += 1
        return max(at_least_seconds, bound * (0.5 + chance / 2))

    def reset(self) -> None:
        """Forget the failures: a try succeeded."""
        self.tries = 0
