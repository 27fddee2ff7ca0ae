"""The numbers behind a verdict: a table of labels and of what is read for each."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.text import Text

from vllm_capacity.top.layout import pairs
from vllm_capacity.top.pen import Pen
from vllm_capacity.top.reading import number, numbers, seconds_to_full, text
from vllm_capacity.top.words import UNKNOWN, count, rate, share, signed_share, until

Values = Mapping[str, Any]
_LIMITS = {
    "none": "nothing",
    "kv_cache": "KV cache",
    "sequences": "max_num_seqs",
    "batched_tokens": "max_num_batched_tokens",
}


def figures(values: Values, width: int, pen: Pen) -> list[Text]:
    """Every number of one engine that the pictures do not tell."""
    return pairs([(label, read(values)) for label, read in _FIGURES], width, pen)


def waiting_requests(values: Values) -> float | None:
    """All that wait, for whichever reason."""
    reasons = numbers(values, "waiting_requests")
    return sum(reasons.values()) if reasons else None


def _several(
    *paths: tuple[str, ...], words: Callable[[float | None], str] = count
) -> Callable[[Values], str]:
    """Numbers beside each other."""
    return lambda values: ", ".join(words(number(values, *path)) for path in paths)


def _in_engine(values: Values) -> str:
    seats = next(iter(numbers(values, "max_sequences").values()), None)
    of_seats = "" if seats is None else f" of {count(seats)}"
    running = count(number(values, "running_requests"))
    return f"{running}{of_seats}, {count(waiting_requests(values))}"


def _capacity(values: Values) -> str:
    tokens = numbers(values, "kv_cache_capacity_tokens")
    return count(tokens.get("reported", tokens.get("derived")))


def _binding_limit(values: Values) -> str:
    limit = text(values, "binding_limit") or UNKNOWN
    return _LIMITS.get(limit, limit)


def _rates(values: Values) -> str:
    metrics = ("arrived_requests_per_second", "completed_requests_per_second")
    return ", ".join(rate(_any(values, metric)) for metric in metrics)


def _any(values: Values, *path: str) -> float | None:
    """Of the shortest window, or the only label that there is."""
    return next(iter(numbers(values, *path).values()), None)


_FIGURES: tuple[tuple[str, Callable[[Values], str]], ...] = (
    ("running, waiting", _in_engine),
    (
        "room: mean, p95, full",
        _several(
            *(("headroom_requests", b) for b in ("observed_mean", "observed_p95", "full_length"))
        ),
    ),
    (
        "blocks used, predicted",
        _several(("kv_cache_used_blocks",), ("predicted_kv_cache_used_blocks",)),
    ),
    ("tokens used, free", _several(("kv_cache_used_tokens",), ("kv_cache_free_tokens",))),
    ("capacity, tokens", _capacity),
    (
        "error of capacity",
        _several(("prediction_error_ratio", "kv_cache_tokens"), words=signed_share),
    ),
    ("binding limit", _binding_limit),
    ("full in", lambda values: until(seconds_to_full(values))),
    ("saturation", _several(("saturation_ratio",), words=share)),
    (
        "tokens: mean, p95",
        _several(("request_footprint_tokens", "mean"), ("request_footprint_tokens", "p95")),
    ),
    ("arrived, completed", _rates),
    (
        "from prefix cache",
        lambda values: share(_any(values, "cached_prompt_tokens_ratio", "local")),
    ),
    ("ledger", lambda values: text(values, "ledger_state") or UNKNOWN),
)
