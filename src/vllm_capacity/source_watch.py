"""How the watching of one source goes: every collection timed, survived and counted."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from vllm_capacity.compare.fleet import SourceHealth
from vllm_capacity.errors import ExpositionError, SourceError

T = TypeVar("T")

log = structlog.get_logger()


class SourceWatch:
    """The health of one source, kept by the one wrapper around each collection from it.

    Args:
        source: "vllm", "config" or "nvml".
        labels: what else its log lines say, as in ``target="…"``.
        monotonic, wall: clocks.
    """

    def __init__(
        self,
        source: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        **labels: str,
    ) -> None:
        self._log = log.bind(source=source, **labels)
        self._monotonic, self._wall = monotonic, wall
        self.health = SourceHealth()

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """One collection; None if it failed. A change of its outcome is one log line."""
        started = self._monotonic()
        try:
            result = await work()
        except (SourceError, ExpositionError) as error:
            reason = error.reason if isinstance(error, SourceError) else "parse"
            self._fail(reason, str(error), started)
            return None
        except Exception as error:  # noqa: BLE001 (a fault of ours; the daemon lives on and says so)
            message = f"internal error, please report it: {error!r}"
            if self.health.last_error != message:
                self._log.exception("collection crashed")
            self._fail("internal", message, started)
            return None
        if self.health.up is not True:
            self._log.info("source is up")
        self.health = self.health.succeeded(at=self._wall(), seconds=self._monotonic() - started)
        return result

    def _fail(self, reason: str, message: str, started: float) -> None:
        if self.health.last_error != message:
            # Something that is not there is a state to know; something that broke is to be mended.
            write = self._log.info if reason == "absent" else self._log.warning
            write("source failed", reason=reason, error=message)
        self.health = self.health.failed(
            reason=reason, message=message, seconds=self._monotonic() - started
        )
