"""Writes the generated tables of the documentation; ``--check`` only compares.

Between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` a page holds what the code says of itself.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm_capacity.commands.check import GAPS
from vllm_capacity.errors import InputError
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.models.registry import architectures
from vllm_capacity.predict.parallel import Rank, ranks
from vllm_capacity.settings import DEFAULT_PORT, SETTINGS, Setting

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent / "tests" / name) for name in ("predict", "compare", "top")]

from answered import differences, predicted  # noqa: E402 (the tests' own comparison)
from foreseen import foreseen  # noqa: E402
from played_screen import pictured  # noqa: E402
from recorded import DATA, rows  # noqa: E402
from recordings import RECORDINGS, Moments, accuracy, assessed  # noqa: E402

_ALONE: Rank = ranks(
    tensor_parallel=1, pipeline_parallel=1, data_parallel=1, expert_parallel=False
)[0]
#: Files of vLLM's own answers about models; of the last ones whole deployments.
_MODELS = ("architectures", "variations", "quantized")


def metrics_table() -> Iterator[str]:
    """Every metric of the catalogue."""
    yield "| metric | type | labels | meaning | where it comes from |"
    yield "|---|---|---|---|---|"
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.all_labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} | {metric.origin} |"


def settings_table() -> Iterator[str]:
    """Every setting."""
    yield "| flag | environment | default | what it does |"
    yield "|---|---|---|---|"
    for setting in SETTINGS:
        yield (
            f"| `--{setting.name}` | `{setting.variable}` | {_default(setting)} | {setting.help} |"
        )


def gaps_table() -> Iterator[str]:
    """What each metric of vLLM is needed for."""
    yield "| vLLM's metric | weight | without it |"
    yield "|---|---|---|"
    for name, (weight, cost) in GAPS.items():
        yield f"| `{name}` | {weight} | {cost} |"


def oracle_table() -> Iterator[str]:
    """The run against vLLM's own answers, made now."""
    cases, supported, exact = Counter[str](), Counter[str](), Counter[str]()
    for case in rows("oracle"):
        prediction = predicted(case)
        cases[case["cls"]] += 1
        supported[case["cls"]] += prediction.supported
        exact[case["cls"]] += prediction.supported and not differences(case, prediction)
    yield "| kind | deployments | supported | equal in every number |"
    yield "|---|---|---|---|"
    for kind in sorted(cases):
        yield f"| `{kind}` | {cases[kind]} | {supported[kind]} | {exact[kind]} |"
    yield (f"| **all** | **{cases.total()}** | **{supported.total()}** | **{exact.total()}** |")


def architectures_table() -> Iterator[str]:
    """Every class that is described, and how many answers of vLLM the tests compare it with."""
    deployments, models, kept = Counter[str](), Counter[str](), dict[str, set[str]]()
    for path in sorted(DATA.glob("*.jsonl.xz")):
        name = path.name.removesuffix(".jsonl.xz")
        if not name.startswith(("oracle", "more_oracle", "models_", *_MODELS)):
            continue
        count = deployments if "oracle" in name else models
        for row in rows(name):
            (architecture, *_) = row["config"].get("architectures") or ("",)
            count[architecture] += 1
            kept.setdefault(architecture, set()).update(_kept(row["config"]))
    yield "| class | what its layers keep | deployments compared | models compared |"
    yield "|---|---|---|---|"
    for name in architectures():
        kinds = ", ".join(sorted(kept.get(name, ())))
        yield f"| `{name}` | {kinds} | {deployments[name] or '–'} | {models[name] or '–'} |"


def _kept(config: dict[str, object]) -> set[str]:
    """Kinds of caches of a model's layers, in the field's words."""
    try:
        model = ModelConfig.from_dict(config).model
    except InputError:
        return set()
    if model is None:
        return set()
    caches = {
        named.cache
        for layer in {id(layer.parts): layer for layer in model.layers}.values()
        for part in layer.parts
        for named in part.caches(_ALONE, layer.path)
    }
    return {_words(cache) for cache in caches}


def _words(cache: object) -> str:
    if getattr(cache, "attention_chunk_size", None):
        return "chunks"
    if getattr(cache, "sliding_window", None):
        return "window"
    kind = getattr(cache, "kind", None)
    if kind is not None:
        return f"{kind.value.replace('_', ' ')} state"
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(cache).__name__.removesuffix("Cache")).lower()
    return {"attention": "full"}.get(words, words)


def foreseen_table() -> Iterator[str]:
    """What committed demand said of the recordings' preemptions, replayed now."""
    yield (
        "| recording | first preemption | admitted alone pass the pool before | "
        "with those that keep coming | scrapes above the pool | of them false | largest, in pools |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for which, moments in _engines():
        told = foreseen(moments)
        times = (told.first_preemption, told.admitted_lead, told.lead)
        cells = " | ".join("–" if t is None else f"{t:.0f} s" for t in times)
        yield f"| {which} | {cells} | {told.alarms} | {told.false_alarms} | {told.peak:.2f} |"


def accuracy_table() -> Iterator[str]:
    """How close the predicted blocks came to the used ones of the recordings, replayed now."""
    yield "| recording | median | p95 | largest | interval holds | its width | anchored |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for which, moments in _engines():
        a = accuracy(moments)
        errors = " | ".join(f"{error:.2%}" for error in (a.median, a.p95, a.largest))
        yield f"| {which} | {errors} | {a.held:.0%} | {a.width:.1%} | {a.anchored:.0%} |"


def top_screen() -> Iterator[str]:
    """What ``top`` shows of a recording, drawn now."""
    yield "```text"
    yield from pictured("ramp2", 105.0)
    yield "```"


def _engines() -> Iterator[tuple[str, Moments]]:
    for name in RECORDINGS:
        for engine, moments in sorted(assessed(name).items()):
            yield name if engine == "0" else f"{name}, engine {engine}", moments


TABLES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "metrics.md": {"metrics": metrics_table, "gaps": gaps_table},
    "configuration.md": {"settings": settings_table},
    "live.md": {"foreseen": foreseen_table, "accuracy": accuracy_table},
    "top.md": {"screen": top_screen},
    "architectures.md": {"oracle": oracle_table, "architectures": architectures_table},
}


def built(page: str) -> str:
    """The text that a page ought to have."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{page}: the marks around {name} are missing")
        body = begin + "\n".join(table()) + "\n" + end
        text = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, b=body: b, text, flags=re.DOTALL
        )
    return text


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` name those that differ."""
    stale = [page for page in TABLES if built(page) != (DOCS / page).read_text(encoding="utf-8")]
    for page in stale:
        print(f"docs/{page} is out of date: run python docs/build.py")
        if "--check" not in arguments:
            (DOCS / page).write_text(built(page), encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


def _default(setting: Setting) -> str:
    if setting.default is None or setting.default == ():
        return "–"
    if setting.name == "web.listen-address":
        return f"`:{DEFAULT_PORT}`"
    if isinstance(setting.default, bool):
        return "on" if setting.default else "off"
    if isinstance(setting.default, float):
        return f"`{setting.default:g}s`"
    return f"`{setting.default}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
