"""From what a start-up log measured to the terms of a prediction."""

from vllm_capacity.errors import Fault, InputError
from vllm_capacity.observe.measured_memory import MeasuredRank, MeasuredTerm, measured_memory
from vllm_capacity.observe.startup_log import StartupLog
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.units import Bytes


def calibration_from(log: StartupLog, source: str) -> Calibration:
    """The terms that a start-up measured, of the rank with the smallest KV cache.

    Raises:
        InputError: the log holds none.
    """
    measured = measured_memory(log)
    rank = MeasuredRank() if measured is None else measured.tightest
    origin = "measured: start-up log" + (f", vLLM {log.vllm_version}" if log.vllm_version else "")
    calibration = Calibration(
        source=source,
        model=log.model,
        architecture=log.architecture,
        vllm_version=log.vllm_version,
        engine_args=log.engine_args or {},
        total_memory_bytes=_estimate(rank.total_memory, origin),
        weights_bytes=_estimate(rank.weights, origin),
        activation_peak_bytes=_estimate(rank.activation_peak, origin),
        non_torch_bytes=_estimate(rank.non_torch, origin),
        cuda_graph_bytes=_estimate(rank.cuda_graph_reserve or rank.cuda_graphs, origin),
    )
    if not calibration.terms:
        problem = "holds no measured memory; give the log of a start-up that loaded its model"
        raise InputError(source, [Fault("log", None, problem)])
    return calibration


def _estimate(term: MeasuredTerm | None, origin: str) -> Estimate | None:
    if term is None:
        return None
    return Estimate(
        bytes=term.bytes,
        low=Bytes(max(0, term.bytes - term.uncertainty_bytes)),
        high=Bytes(term.bytes + term.uncertainty_bytes),
        origin=origin,
    )
