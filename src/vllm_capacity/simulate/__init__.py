"""An engine without a GPU: vLLM's block pool, scheduler and metrics under a moving load."""

from vllm_capacity.simulate.config import (
    SIMULATED_ENGINE_ARGS,
    SIMULATED_MODEL_CONFIG,
    SIMULATED_VLLM_VERSION,
    SimulationConfig,
)
from vllm_capacity.simulate.engine import EngineTruth, RequestTruth, SimulatedEngine, StepOutcome
from vllm_capacity.simulate.metrics import SimulatedMetrics
from vllm_capacity.simulate.requests import RequestSpec, Status, Submission
from vllm_capacity.simulate.scenarios import SCENARIOS, Scenario
from vllm_capacity.simulate.scrapes import Scrape, Scraping, scrapes
from vllm_capacity.simulate.server import SimulatedServer
from vllm_capacity.simulate.simulation import Simulation
from vllm_capacity.simulate.target import Restart, SimulatedTarget
from vllm_capacity.simulate.workload import LOAD_PATTERNS, Arrival, Workload

__all__ = [
    "LOAD_PATTERNS",
    "SCENARIOS",
    "SIMULATED_ENGINE_ARGS",
    "SIMULATED_MODEL_CONFIG",
    "SIMULATED_VLLM_VERSION",
    "Arrival",
    "EngineTruth",
    "RequestSpec",
    "RequestTruth",
    "Restart",
    "Scenario",
    "Scrape",
    "Scraping",
    "SimulatedEngine",
    "SimulatedMetrics",
    "SimulatedServer",
    "SimulatedTarget",
    "Simulation",
    "SimulationConfig",
    "Status",
    "StepOutcome",
    "Submission",
    "Workload",
    "scrapes",
]
