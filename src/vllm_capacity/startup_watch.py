"""What an engine's log says of its last start-up, as the log grows."""

from collections.abc import Iterator
from typing import Protocol

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.observe.measured_memory import MeasuredMemory, measured_memory
from vllm_capacity.observe.startup_log import StartupLog, StartupLogReader
from vllm_capacity.predict.memory.calibration import Calibration

#: One reading is bounded; a backlog is caught up with over several.
_BYTES_PER_READING = 16 << 20


class LogSource(Protocol):
    """Gives what came into a log since the last call, in blocks of whole lines."""

    path: str
    is_behind: bool

    def read(self, max_bytes: int) -> Iterator[bytes]: ...  # noqa: D102


class StartupWatch:
    """Feeds what a log gains into the reader of start-ups; a restart begins a new profile.

    A start-up counts once it has sized its KV cache: until then, and if it fails, what the one
    before it said stays. While a backlog is read nothing changes.

    Args:
        log: where lines come from.

    Attributes:
        start_up: the last start-up that counts; None before the first line of any.
        calibration: what it measured, for predictions; None before it has.
        measured: the same for comparisons.
    """

    def __init__(self, log: LogSource) -> None:
        self._log = log
        self._reader = StartupLogReader()
        self.start_up: StartupLog | None = None
        self.calibration: Calibration | None = None
        self.measured: MeasuredMemory | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the last reading left a part of the log to the next."""
        return self._log.is_behind

    def read(self) -> None:
        """Read what is new, a part of it where it is much.

        Raises:
            SourceError: the log is not there, cannot be read, or is that of several servers.
        """
        try:
            for block in self._log.read(_BYTES_PER_READING):
                self._reader.feed_block(block)
        finally:
            if not self.is_behind and len(self._reader.servers) <= 1:
                self._adopt(self._reader.complete())
        if len(self._reader.servers) > 1:
            names = ", ".join(sorted(self._reader.servers))
            problem = f"{self._log.path} holds the lines of several servers ({names})"
            raise SourceError("invalid", f"{problem}; give each target a log of its own")

    def _adopt(self, start_up: StartupLog) -> None:
        if start_up == self.start_up or not start_up.lines:
            return
        self.start_up = start_up
        self.calibration, self.measured = self._calibration(start_up), measured_memory(start_up)

    def _calibration(self, latest: StartupLog) -> Calibration | None:
        try:
            return calibration_from(latest, self._log.path)
        except InputError:
            return None  # nothing measured yet
