"""One engine line by line, for whoever has no room for a picture."""

from collections.abc import Iterator, Mapping

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.units import format_gib

_UNKNOWN = "unknown"
_SIZES = (
    ("observed_mean", "of mean size"),
    ("observed_p95", "of 95th percentile size"),
    ("full_length", "of full length"),
)


def facts_of(a: EngineAssessment) -> Iterator[tuple[str, str]]:
    """What is known of an engine: a label and a value in words."""
    yield from _pool(a)
    yield "Requests running / waiting", _pair(a.snapshot.running, a.snapshot.waiting)
    for basis, words in _SIZES:
        yield f"Further requests {words}", _count(a.headroom.requests.get(basis))
    if a.footprint is not None:
        sizes = _pair(a.footprint.mean_tokens, a.footprint.p95_tokens)
        yield "Request footprint, mean / p95", f"{sizes} tokens"
    rates = (a.recent.arrived_requests_per_second, a.recent.completed_requests_per_second)
    yield "Requests a second, arrived / completed", " / ".join(map(_rate, rates))
    yield "Ledger", f"{a.ledger.state}: {a.ledger.reason}"


def _pool(a: EngineAssessment) -> Iterator[tuple[str, str]]:
    s = a.snapshot
    blocks = (s.used_blocks, a.predicted_used_blocks, s.total_blocks)
    yield "Blocks used / predicted / total", " / ".join(map(_count, blocks))
    if a.occupancy_reason is not None:
        yield "No blocks predicted", a.occupancy_reason
    yield "Tokens used / capacity", _pair(a.used_tokens, a.reported.tokens or a.derived.tokens)
    yield "Capacity predicted", _capacity(a)


def _capacity(a: EngineAssessment) -> str:
    error = a.errors.get("kv_cache_tokens")
    size = a.predicted.bytes_per_gpu
    text = f"{_count(a.predicted.tokens)} tokens"
    if size is not None:
        text += f", {format_gib(size)}"
    return (
        text if error is None or error.ratio is None else f"{text} (measured: {error.ratio:+.2%})"
    )


def _pair(one: float | None, other: float | None) -> str:
    return f"{_count(one)} / {_count(other)}"


def _count(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:,.0f}"


def _rate(by_window: Mapping[str, float]) -> str:
    return f"{by_window['1m']:.2f}" if "1m" in by_window else _UNKNOWN
