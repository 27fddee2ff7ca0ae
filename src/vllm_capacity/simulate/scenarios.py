"""Things that go wrong, to try dashboards and alerts on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.target import Restart
from vllm_capacity.simulate.workload import Workload
from vllm_capacity.units import Blocks

_PLAIN = SimulationConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A server, its clients and what happens to them.

    Attributes:
        text: what one sees, in a few words.
        config: the server.
        workload: its clients.
        restarts: when it is started anew, and how.
    """

    text: str
    config: SimulationConfig = _PLAIN
    workload: Workload = field(default_factory=Workload)
    restarts: tuple[Restart, ...] = ()


def _restart(config: SimulationConfig) -> Restart:
    return Restart(at_seconds=180.0, down_seconds=15.0, config=config)


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "slow-ramp": Scenario(
            text="load grows past saturation in ten minutes", workload=Workload(pattern="ramp")
        ),
        "flash-crowd": Scenario(
            text="three of ten minutes at twice what fits", workload=Workload(pattern="crowd")
        ),
        "leak": Scenario(
            text="blocks get lost, two a second, until little is left",
            config=replace(_PLAIN, leaked_blocks_per_second=2.0),
            workload=Workload(pattern="steady"),
        ),
        "too-few-sequences": Scenario(
            text="--max-num-seqs 8 makes clients wait before an empty cache",
            config=replace(_PLAIN, max_num_seqs=8),
            workload=Workload(pattern="crowd"),
        ),
        "smaller-pool": Scenario(
            text="after three minutes a restart with half of the blocks",
            workload=Workload(pattern="steady"),
            restarts=(_restart(replace(_PLAIN, num_gpu_blocks=Blocks(1280))),),
        ),
        "hot-engine": Scenario(
            text="a quarter of the requests sticks to the first of eight engines",
            config=replace(_PLAIN, data_parallel_size=8),
            workload=Workload(pattern="steady", pinned_share=0.25),
        ),
    }
)
"""Scenarios by name; all start like an ordinary server."""
