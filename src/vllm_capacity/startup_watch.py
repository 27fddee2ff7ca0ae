"""What an engine's log says of its last start-up, as the log grows."""

from typing import Protocol

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.errors import InputError
from vllm_capacity.observe.measured_memory import MeasuredMemory, measured_memory
from vllm_capacity.observe.startup_log import StartupLog, StartupLogReader
from vllm_capacity.predict.memory.calibration import Calibration

#: One reading is bounded, so that a backlog is caught up with over several collections.
_BYTES_PER_COLLECTION = 16 << 20


class LogSource(Protocol):
    """Gives the lines of a log that came since the last call."""

    path: str

    def read(self, max_bytes: int) -> list[str]: ...  # noqa: D102


class StartupWatch:
    """Feeds what a log gains into the reader of start-ups; a restart begins a new profile.

    Args:
        log: where lines come from.
    """

    def __init__(self, log: LogSource) -> None:
        self._log = log
        self._reader = StartupLogReader()
        self.calibration: Calibration | None = None
        self.measured: MeasuredMemory | None = None

    def read(self) -> bool:
        """Read what is new; whether what is known of the start-up has changed.

        Raises:
            SourceError: the log is not there, or cannot be read.
        """
        lines = self._log.read(_BYTES_PER_COLLECTION)
        for line in lines:
            self._reader.feed(line)
        known = (self.calibration, self.measured)
        if lines:
            startup = self._reader.result()
            self.calibration, self.measured = self._calibration(startup), measured_memory(startup)
        return (self.calibration, self.measured) != known

    def _calibration(self, startup: StartupLog) -> Calibration | None:
        try:
            return calibration_from(startup, self._log.path)
        except InputError:
            return None  # nothing measured yet
