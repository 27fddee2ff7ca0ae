"""From what a start-up log measured to the terms of a prediction."""

from vllm_capacity.errors import Fault, InputError
from vllm_capacity.observe.startup_log import RankStartup, StartupLog
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.units import Bytes

#: Terms that belong together: they add up within one rank.
_SUMMED = {"weights_bytes", "activation_peak_bytes", "consumed_bytes", "non_torch_bytes"}


def calibration_from(log: StartupLog, source: str) -> Calibration:
    """The terms that a start-up measured, of the rank with the smallest KV cache.

    Raises:
        InputError: the log holds none.
    """
    rank = _tightest(log)
    origin = "measured: start-up log" + (f", vLLM {log.vllm_version}" if log.vllm_version else "")
    calibration = Calibration(
        source=source,
        model=log.model,
        architecture=log.architecture,
        vllm_version=log.vllm_version,
        engine_args=log.engine_args or {},
        total_memory_bytes=_measured(rank, origin, "total_memory_bytes"),
        weights_bytes=_measured(rank, origin, "weights_bytes"),
        activation_peak_bytes=_activation_peak(rank, origin),
        non_torch_bytes=_measured(rank, origin, "non_torch_bytes")
        or _measured(rank, origin, "consumed_bytes", less="weights_bytes"),
        cuda_graph_bytes=_measured(rank, origin, "cuda_graph_estimate_bytes")
        or _measured(rank, origin, "cuda_graph_bytes"),
    )
    if not calibration.terms:
        problem = "holds no measured memory; give the log of a start-up that loaded its model"
        raise InputError(source, [Fault("log", None, problem)])
    return calibration


def _tightest(log: StartupLog) -> RankStartup:
    """One rank, so that its terms belong together; all ranks' tightest where it lacks some."""
    sized = [rank for rank in log.ranks if rank.kv_cache_bytes is not None]
    if not sized:
        return log
    tightest = min(sized, key=lambda rank: rank.kv_cache_bytes or 0)
    return log if set(log.lines) & _SUMMED - set(tightest.lines) else tightest


def _activation_peak(rank: RankStartup, origin: str) -> Estimate | None:
    """What the profiling run needs above all that stays.

    Where the log tells what stays (``consumed_bytes``, since 0.28), the peak is what the profile
    adds to that; the printed one includes the estimate for CUDA graphs
    (``v1/worker/gpu_worker.py``, ``determine_available_memory``; ``utils/mem_utils.py``).
    """
    if rank.consumed_bytes is None:
        return _measured(rank, origin, "activation_peak_bytes")
    if rank.non_kv_cache_bytes is not None:
        return _measured(rank, origin, "non_kv_cache_bytes", less="consumed_bytes")
    if rank.cuda_graph_estimate_bytes is not None:
        return _measured(rank, origin, "activation_peak_bytes", less="cuda_graph_estimate_bytes")
    return None if rank.cuda_graph_bytes else _measured(rank, origin, "activation_peak_bytes")


def _measured(rank: RankStartup, origin: str, name: str, less: str = "") -> Estimate | None:
    """A printed number, less another one, within what their rounding allows."""
    value = getattr(rank, name)
    subtracted = getattr(rank, less) if less else 0
    if value is None or subtracted is None:
        return None
    rounding = sum(rank.uncertainty_bytes.get(key, 0) for key in (name, less))
    size = max(0, value - subtracted)
    return Estimate(
        bytes=Bytes(size),
        low=Bytes(max(0, size - rounding)),
        high=Bytes(size + rounding),
        origin=origin,
    )
