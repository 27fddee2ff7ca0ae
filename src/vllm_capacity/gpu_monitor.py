"""This host's GPUs: read in the background, published as one immutable value."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import structlog

from vllm_capacity.compare.fleet import SourceHealth
from vllm_capacity.deployment import gpu_of_reading
from vllm_capacity.errors import SourceError
from vllm_capacity.observe.gpu_reading import GpuReading
from vllm_capacity.predict import Gpu
from vllm_capacity.source_watch import SourceWatch

T = TypeVar("T")

log = structlog.get_logger()

_RETRY_ABSENT_SECONDS = 60.0
_CLOSE_SECONDS = 1.0


class GpuSource(Protocol):
    """What reads GPUs; ``sources.nvml.Nvml`` is one."""

    faults: tuple[str, ...]

    def read(self) -> tuple[GpuReading, ...]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class GpuMonitor:
    """Reads every GPU of this host; no driver is a state with a name, not an error.

    Args:
        source: what reads them; it may hang.
        timeout_seconds: how long a reading may take before it is given up. Its call is still
            waited for, without another beside it: what it says in the end is too old to publish.
        expiry_seconds: age at which the last readings are withdrawn.
        monotonic: a clock.
    """

    def __init__(
        self,
        source: GpuSource,
        *,
        timeout_seconds: float = 10.0,
        expiry_seconds: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._monotonic = source, monotonic
        self._timeout_seconds, self._expiry_seconds = timeout_seconds, expiry_seconds
        self._calls = _OneCall()
        self._watch = SourceWatch("nvml", monotonic=monotonic)
        self._readings: tuple[GpuReading, ...] = ()
        self._faults: tuple[str, ...] = ()
        self._read_at = self._retry_at = 0.0
        self._first_gpu: Gpu | None = None

    @property
    def health(self) -> SourceHealth:
        """How the last reading went."""
        return self._watch.health

    @property
    def readings(self) -> tuple[GpuReading, ...]:
        """Every GPU as last read; empty when that failed or is too long ago."""
        too_old = self._monotonic() - self._read_at > self._expiry_seconds
        return () if too_old else self._readings

    def first_gpu(self) -> Gpu | None:
        """The first GPU as the predictor wants it; its size is known once it was ever read."""
        return self._first_gpu

    async def collect(self) -> None:
        """One reading of all GPUs; a driver call can hang, so it is made in a thread."""
        now = self._monotonic()
        if self._is_absent() and now < self._retry_at:
            return  # a driver does not come every few seconds
        self._retry_at = now + _RETRY_ABSENT_SECONDS
        readings = await self._watch.attempt(
            lambda: self._calls.make(self._source.read, self._timeout_seconds)
        )
        self._readings, self._read_at = readings or (), now
        if readings:
            self._first_gpu = gpu_of_reading(readings[0]) or self._first_gpu
            self._tell_faults()

    def close(self) -> None:
        """Let go of the driver; one that hangs is left hanging, as nobody can wait for it."""
        if not self._calls.end_with(self._source.close, _CLOSE_SECONDS):
            log.warning("the driver hangs and is left behind", source="nvml")

    def _is_absent(self) -> bool:
        """Whether there never was a driver here: one that was seen comes back at any moment."""
        health = self.health
        return health.last_reason == "absent" and health.last_success_timestamp_seconds is None

    def _tell_faults(self) -> None:
        """One line when GPUs or answers drop out of the reading or come back."""
        if self._source.faults != self._faults:
            self._faults = self._source.faults
            log.warning("left out of the GPUs' reading", source="nvml", faults=list(self._faults))


class _OneCall:
    """Makes blocking calls, one at a time, each in a thread that nothing need wait for.

    The event loop's own threads would not do: it and the interpreter wait for them at the end,
    and a call that hangs in a kernel driver may never return.
    """

    def __init__(self) -> None:
        self._outcome: Future[Any] | None = None
        self._thread: threading.Thread | None = None

    async def make(self, call: Callable[[], T], timeout_seconds: float) -> T:
        """What the call returns or raises.

        Raises:
            SourceError: ``timeout``, if it takes longer or an earlier one still has not returned.
        """
        if self._outcome is not None and not self._outcome.done():
            raise _timeout(timeout_seconds)
        loop, ended, outcome = asyncio.get_running_loop(), asyncio.Event(), Future[T]()

        def carry_out() -> None:
            _fulfil(outcome, call)
            with suppress(RuntimeError):  # the loop did not wait
                loop.call_soon_threadsafe(ended.set)

        self._thread = threading.Thread(target=carry_out, name="nvml", daemon=True)
        self._thread.start()
        self._outcome = outcome
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended.wait()
        except TimeoutError:
            raise _timeout(timeout_seconds) from None
        return outcome.result()

    def end_with(self, last: Callable[[], None], seconds: float) -> bool:
        """Make a last call after the one under way; False if both take longer than this."""
        running = self._thread

        def end() -> None:
            if running is not None:
                running.join()
            last()

        thread = threading.Thread(target=end, name="nvml end", daemon=True)
        thread.start()
        thread.join(seconds)
        return not thread.is_alive()


def _fulfil(outcome: "Future[T]", call: Callable[[], T]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:  # noqa: BLE001 (it is raised where the call is waited for)
        outcome.set_exception(error)


def _timeout(seconds: float) -> SourceError:
    return SourceError(
        "timeout",
        f"NVML: the driver has not answered for {seconds:g} s; see the kernel log for Xid errors",
    )
