"""The page at ``/``: the current numbers in words and a table, as one HTML document."""

from collections.abc import Iterator, Mapping
from html import escape

from vllm_capacity import __version__
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import FleetAssessment, SourceHealth, TargetAssessment
from vllm_capacity.units import format_gib

_UNKNOWN = "unknown"
_STYLE = """
:root{color-scheme:light dark;--bar:#3b7dd8;--track:#8883;--bad:#c33}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.1rem;margin:2rem 0 .3rem}
.verdict{font-size:1.15rem;margin:.2rem 0}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:400;white-space:nowrap}
td{text-align:right;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem .2rem 0;border-bottom:1px solid #8884}
.pool{width:100%;height:1.6rem;display:block}.pool rect{fill:var(--track)}
.pool .used{fill:var(--bar)}.pool line{stroke:currentColor;stroke-width:2}
.bad{color:var(--bad)}.small{font-size:.85rem;opacity:.8}
"""


def landing_page(fleet: FleetAssessment, telemetry_path: str) -> str:
    """The whole document; reloads itself every five seconds."""
    body = "".join(_target(target) for target in fleet.targets) or "<p>No target is configured.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="refresh" content="5"><title>vLLM capacity</title>'
        f"<style>{_STYLE}</style></head><body><h1>vLLM capacity</h1>{body}"
        f'<p class="small">vllm-capacity {escape(__version__)} · '
        f'<a href="{escape(telemetry_path)}">metrics</a> · '
        '<a href="/-/healthy">health</a> · <a href="/-/ready">readiness</a></p></body></html>'
    )


def verdict(a: EngineAssessment) -> str:
    """How full the engine is, as predicted or not, and how much more fits, in one sentence."""
    usage = a.snapshot.kv_cache_usage_ratio
    parts = [f"KV cache {_percent(usage)} used"]
    error = a.errors.get("kv_cache_used_blocks")
    if error is not None:
        parts.append(f"{a.predicted_used_blocks:.0f} blocks predicted, {error.measured:.0f} held")
    more = a.headroom.requests.get("observed_mean")
    if more is not None:
        parts.append(f"room for {more} more requests of the usual size")
    return "; ".join(parts) + "."


def _target(target: TargetAssessment) -> str:
    engines = "".join(_engine(a) for a in target.engines)
    version = f" · vLLM {escape(target.vllm_version)}" if target.vllm_version else ""
    return (
        f"<section><h2>{escape(target.target)}{version}</h2>{_health(target)}{engines}"
        f'<p class="small">Prediction: {escape(target.prediction.message)}</p></section>'
    )


def _health(target: TargetAssessment) -> str:
    problems = [
        f'<p class="{_weight(health)}">{escape(source)}: {escape(health.last_error)}</p>'
        for source, health in target.health.items()
        if health.last_error is not None
    ]
    missing = [name for name, present in target.metric_present.items() if not present]
    if missing:
        problems.append(f"<p>Not on vLLM's page: {escape(', '.join(missing))}</p>")
    return "".join(problems)


def _weight(health: SourceHealth) -> str:
    """Something that is not there is a state to know; something that broke is to be mended."""
    return "small" if health.last_reason == "absent" else "bad"


def _engine(a: EngineAssessment) -> str:
    name = f"{a.snapshot.model_name or 'model unknown'}, engine {a.snapshot.engine}"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value in facts_of(a)
    )
    return (
        f'<h3>{escape(name)}</h3><p class="verdict">{escape(verdict(a))}</p>{_pool(a)}'
        f"<table>{rows}</table>"
    )


def _pool(a: EngineAssessment) -> str:
    """The pool as a bar: filled as far as it is used, a line where it ought to be."""
    usage, total = a.snapshot.kv_cache_usage_ratio, a.snapshot.total_blocks
    if usage is None:
        return ""
    line, should = "", "unknown"
    if a.predicted_used_blocks is not None and total:
        share = min(1.0, a.predicted_used_blocks / total)
        should = _percent(share)
        line = f'<line x1="{share:.2%}" x2="{share:.2%}" y1="0" y2="100%"/>'
    return (
        f'<svg class="pool" role="img" aria-label="{_percent(usage)} used, {should} predicted">'
        f'<rect width="100%" height="100%"/><rect class="used" width="{usage:.2%}" height="100%"/>'
        f"{line}</svg>"
        '<p class="small">filled: blocks in use · line: blocks that ought to be in use</p>'
    )


def facts_of(a: EngineAssessment) -> Iterator[tuple[str, str]]:
    """What is known of an engine, line by line: a label and a value in words."""
    s = a.snapshot
    yield (
        "Blocks used / predicted / total",
        " / ".join(_count(n) for n in (s.used_blocks, a.predicted_used_blocks, s.total_blocks)),
    )
    if a.occupancy_reason is not None:
        yield "No blocks predicted", a.occupancy_reason
    yield (
        "Tokens used / capacity",
        f"{_count(a.used_tokens)} / {_count(a.reported.tokens or a.derived.tokens)}",
    )
    yield "Capacity predicted", _capacity(a)
    yield "Requests running / waiting", f"{_count(s.running)} / {_count(s.waiting)}"
    for basis, words in (
        ("observed_mean", "of mean size"),
        ("observed_p95", "of 95th percentile size"),
        ("full_length", "of full length"),
    ):
        yield f"Further requests {words}", _count(a.headroom.requests.get(basis))
    if a.footprint is not None:
        yield (
            "Request footprint, mean / p95",
            (f"{_count(a.footprint.mean_tokens)} / {_count(a.footprint.p95_tokens)} tokens"),
        )
    yield (
        "Requests a second, arrived / completed",
        " / ".join(
            _rate(rates)
            for rates in (
                a.recent.arrived_requests_per_second,
                a.recent.completed_requests_per_second,
            )
        ),
    )
    yield "Ledger", f"{a.ledger.state}: {a.ledger.reason}"


def _capacity(a: EngineAssessment) -> str:
    error = a.errors.get("kv_cache_tokens")
    size = a.predicted.bytes_per_gpu
    text = f"{_count(a.predicted.tokens)} tokens"
    if size is not None:
        text += f", {format_gib(size)}"
    return (
        text if error is None or error.ratio is None else f"{text} (measured: {error.ratio:+.2%})"
    )


def _count(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:,.0f}"


def _rate(by_window: Mapping[str, float]) -> str:
    return f"{by_window['1m']:.2f}" if "1m" in by_window else _UNKNOWN


def _percent(ratio: float | None) -> str:
    return _UNKNOWN if ratio is None else f"{ratio:.0%}"
