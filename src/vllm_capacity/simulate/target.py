"""What stands behind one address: a server, its end, and the server that comes after it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.metrics import SimulatedMetrics
from vllm_capacity.simulate.simulation import Simulation
from vllm_capacity.simulate.workload import Arrival


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """One restart.

    Attributes:
        at_seconds: when the server dies, and with it every request that it has.
        down_seconds: time until the next one answers; whoever comes meanwhile is refused.
        config: how the next one is started.
    """

    at_seconds: float
    down_seconds: float
    config: SimulationConfig


class SimulatedTarget:
    """A server and its restarts, in their own time: seconds from the start of the first one.

    Attributes:
        simulation: the engines and clients of the server that runs, or ran last.
        is_down: whether nobody answers.
    """

    def __init__(
        self,
        config: SimulationConfig,
        arrivals: Iterable[Arrival],
        restarts: Iterable[Restart] = (),
        *,
        started_at: float = 0.0,
    ) -> None:
        """Start the first server.

        Args:
            config: how it is started.
            arrivals: its clients, and those of the servers after it.
            restarts: in the order of their times.
            started_at: Unix time of the start, for ``process_start_time_seconds``.
        """
        self._arrivals = iter(arrivals)
        self._restarts = iter(restarts)
        self._next = next(self._restarts, None)
        self._started_at = started_at
        self.is_down = False
        self._start(config, 0.0)

    def advance_to(self, seconds: float) -> None:
        """Let everything happen up to and including ``seconds``."""
        while (restart := self._next) is not None and seconds >= restart.at_seconds:
            self.simulation.advance_to(restart.at_seconds)
            up_at = restart.at_seconds + restart.down_seconds
            self.is_down = seconds < up_at
            if self.is_down:
                return
            self._start(restart.config, up_at)
            self._next = next(self._restarts, None)
        self.simulation.advance_to(seconds)

    def page(self) -> bytes | None:
        """The metrics page; None where nobody answers."""
        return None if self.is_down else self._metrics.page()

    def record_http(self, method: str, handler: str, seconds: float) -> None:
        """Another page than the engines' was asked for."""
        self._metrics.record_http(method, handler, seconds)

    def _start(self, config: SimulationConfig, at_seconds: float) -> None:
        self._metrics = SimulatedMetrics(config, started_at=self._started_at + at_seconds)
        self.simulation = Simulation(config, self._arrivals_from(at_seconds), self._metrics)

    def _arrivals_from(self, seconds: float) -> Iterator[Arrival]:
        return (arrival for arrival in self._arrivals if arrival.at_seconds >= seconds)
