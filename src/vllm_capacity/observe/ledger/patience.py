"""Where clients hang up: while they queue, or while they are served."""


class Patience:
    """Requests lost for each second of one, queued and served."""

    def __init__(self) -> None:
        self._lost_queued = self._lost_served = 0
        self._queued_seconds = self._served_seconds = 1.0

    def pass_time(self, seconds: float, *, queued: float, served: float) -> None:
        """So many requests were there for so long."""
        self._queued_seconds += queued * seconds
        self._served_seconds += served * seconds

    def lose(self, *, queued: int, served: int) -> None:
        """So many hung up."""
        self._lost_queued += queued
        self._lost_served += served

    @property
    def ratio(self) -> float:
        """How much rarer it is for one that queues; 1 as long as nobody hung up."""
        queued = self._queued_seconds / (self._queued_seconds + self._served_seconds)
        lost_queued = (self._lost_queued + 2 * queued) / self._queued_seconds
        lost_served = (self._lost_served + 2 * (1 - queued)) / self._served_seconds
        return lost_served / lost_queued
