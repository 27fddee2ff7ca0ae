"""By how much the prediction was off: measured − predicted, signed, and as a share of measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_capacity.compare.capacity import Capacity


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionError:
    """One quantity, measured and predicted in the same unit."""

    measured: float
    predicted: float

    @property
    def difference(self) -> float:
        """Measured − predicted: positive where there is more than was predicted."""
        return self.measured - self.predicted

    @property
    def ratio(self) -> float | None:
        """The difference as a share of what was measured; None where nothing was."""
        return self.difference / self.measured if self.measured else None


def prediction_errors(
    *,
    measured: Capacity,
    predicted: Capacity,
    used_blocks: float | None,
    predicted_used_blocks: float | None,
) -> Mapping[str, PredictionError]:
    """Errors by quantity; a quantity of which either side is unknown has none."""
    pairs = {
        "kv_cache_blocks": (measured.blocks, predicted.blocks),
        "kv_cache_tokens": (measured.tokens, predicted.tokens),
        "kv_cache_bytes": (measured.bytes_per_gpu, predicted.bytes_per_gpu),
        "full_length_concurrency": (
            measured.full_length_concurrency,
            predicted.full_length_concurrency,
        ),
        "kv_cache_used_blocks": (used_blocks, predicted_used_blocks),
    }
    return {
        quantity: PredictionError(measured=was, predicted=should)
        for quantity, (was, should) in pairs.items()
        if was is not None and should is not None
    }
