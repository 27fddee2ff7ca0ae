"""Writes the generated tables of the documentation; ``--check`` only compares.

Between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` a page holds what the code says of itself.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm_capacity.commands.check import GAPS
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.settings import DEFAULT_PORT, SETTINGS, Setting

DOCS = Path(__file__).parent


def metrics_table() -> Iterator[str]:
    """Every metric of the catalogue."""
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.all_labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


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


TABLES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "metrics.md": {"metrics": metrics_table, "gaps": gaps_table},
    "configuration.md": {"settings": settings_table},
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
