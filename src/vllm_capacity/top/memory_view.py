"""Where a GPU's memory goes, and what was predicted of it beside what the engine reported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from vllm_capacity.top.bars import Share, stack_bar
from vllm_capacity.top.entries import Entry
from vllm_capacity.top.layout import Column, table
from vllm_capacity.top.pen import DIM, Pen
from vllm_capacity.top.reading import JsonObject, listed, number, numbers, records, text
from vllm_capacity.top.words import SHORT_UNKNOWN, age, signed_share, size

_MOST_IN_WORDS = 2

#: Of a stack in the order in which it is drawn: a letter, a colour, a name.
_COMPONENTS: Mapping[str, tuple[str, str, str]] = {
    "weights": ("W", "blue", "weights"),
    "kv_cache": ("K", "cyan", "KV cache"),
    "cuda_graph": ("G", "magenta", "CUDA graphs"),
    "non_torch": ("N", "yellow", "outside PyTorch"),
    "context": ("C", "yellow", "CUDA context"),
    "reserved": ("R", "yellow", "driver's reserve"),
    "activation_peak": ("A", "green", "activations"),
    "other_processes": ("O", "red", "other processes"),
    "unaccounted": ("U", "bold red", "unaccounted"),
    "unattributed": ("?", "bold red", "nobody known"),
}


def _gpus_of(entry: Entry) -> list[JsonObject]:
    """The GPUs that an engine is on; all that are watched beside it where that is not known."""
    gpus = records(entry.document, "gpus")
    _, target, engine = entry.key
    own = [gpu for gpu in gpus if any(_is(one, target, engine) for one in listed(gpu, "engines"))]
    return own or [gpu for gpu in gpus if not listed(gpu, "engines")]


def _is(place: object, target: str, engine: str) -> bool:
    return isinstance(place, list | tuple) and list(place) == [target, engine]


def gpu_stacks(entry: Entry, width: int, pen: Pen) -> list[Text]:
    """Each GPU's or MIG instance's memory as a stack of letters, with the budget beneath."""
    gpus, seconds = _gpus_of(entry), entry.age_of("nvml")
    lines = _stacks(gpus, width, pen)
    if gpus and seconds is not None and entry.is_old(seconds):
        lines.insert(0, pen.text(f"GPU memory as it was {age(seconds)} ago", "bold yellow"))
    return lines


def _stacks(gpus: Sequence[JsonObject], width: int, pen: Pen) -> list[Text]:
    each = _gpu if len(gpus) <= _MOST_IN_WORDS else _gpu_in_brief
    lines = [line for gpu in gpus for line in each(gpu, width, pen)]
    if len(gpus) > _MOST_IN_WORDS:
        names = {name for gpu in gpus for name in numbers(gpu, "held")}
        words = [f"{c[0]} {c[2]}" for name, c in _COMPONENTS.items() if name in names]
        lines += pen.wrapped(", ".join(words), width, DIM)
    return lines


def _gpu_in_brief(gpu: JsonObject, width: int, pen: Pen) -> Iterator[Text]:
    used, total, index = (number(gpu, name) for name in ("used_bytes", "total_bytes", "gpu"))
    label = f"GPU {'' if index is None else f'{index:.0f}'} "
    said = f" {size(used)} of {size(total)}"
    room = max(1, width - len(label) - len(said))
    bar = _bar(gpu, total, room, pen) if total else pen.text("?" * room)
    yield pen.fitted(pen.joined(pen.text(label, DIM), bar, pen.text(said)), width)


def _bar(gpu: JsonObject, total: float, width: int, pen: Pen) -> Text:
    held = numbers(gpu, "held")
    shares = [
        Share(letter=letter, style=style, size=held[name])
        for name, (letter, style, _) in _COMPONENTS.items()
        if held.get(name, 0) > 0
    ]
    return stack_bar(width, shares, total, pen)


def _gpu(gpu: JsonObject, width: int, pen: Pen) -> Iterator[Text]:
    used, total, budget = (number(gpu, f"{n}_bytes") for n in ("used", "total", "budget"))
    index = number(gpu, "gpu")
    facts = [
        "GPU" if index is None else f"GPU {index:.0f}",
        text(gpu, "mig_uuid") or text(gpu, "name") or "",
        f"{size(used)} used of {size(total)}",
        "budget unknown" if budget is None else f"budget {size(budget)}",
    ]
    yield pen.fitted(pen.listed([fact for fact in facts if fact], "bold"), width)
    held = {name: n for name, n in numbers(gpu, "held").items() if n != 0}
    if total:
        yield _bar(gpu, total, width, pen)
        if budget is not None:
            at = min(width - 1, int(width * budget / total))
            words = "budget "
            line = words + pen.glyphs.marker if at >= len(words) else pen.glyphs.marker + " budget"
            yield pen.fitted(pen.text(""), width).append(line.rjust(at + 1), DIM)
    legend = [
        f"{letter} {words} {size(held[name])}"
        for name, (letter, _, words) in _COMPONENTS.items()
        if name in held
    ]
    growth = number(gpu, "unaccounted_growth_bytes_per_second")
    if growth:
        legend.append(f"unaccounted grows by {size(growth * 3600)} an hour")
    yield from pen.wrapped(", ".join(legend), width, DIM)


_TERMS = {
    "weights": "weights",
    "activation_peak": "activation peak",
    "non_torch": "outside PyTorch",
    "cuda_graph": "CUDA graphs",
    "kv_cache": "KV cache",
}
_COLUMNS = (
    Column(heading="a GPU's memory", right=False, flexible=True),
    Column(heading="predicted"),
    Column(heading="between", rank=1),
    Column(heading="reported"),
    Column(heading="error"),
)


def memory_terms(entry: Entry, width: int, pen: Pen) -> list[Text]:
    """Each term as predicted without the start-up log, and as the log says."""
    found = [row for row in records(entry.target, "memory_terms") if _tells(row)]
    if not found:
        return []
    return table(_COLUMNS, [_term(row, pen) for row in found], width, pen)


def _tells(row: JsonObject) -> bool:
    return any(number(row, f"{side}_bytes") is not None for side in ("predicted", "reported"))


def _term(row: JsonObject, pen: Pen) -> list[Text]:
    term = text(row, "term") or SHORT_UNKNOWN
    cells = (
        _TERMS.get(term, term),
        size(number(row, "predicted_bytes"), SHORT_UNKNOWN),
        _between(row),
        size(number(row, "reported_bytes"), SHORT_UNKNOWN),
        signed_share(number(row, "error_ratio"), SHORT_UNKNOWN),
    )
    return [pen.text(cell) for cell in cells]


def _between(row: Mapping[str, Any]) -> str:
    low, high = number(row, "predicted_low_bytes"), number(row, "predicted_high_bytes")
    return "" if low is None or high is None or low == high else f"{size(low)} to {size(high)}"
