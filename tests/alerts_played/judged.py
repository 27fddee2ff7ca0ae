"""When each alert fires: the scaled rules over played pages, by promtool, to the second."""

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from played import Played, Scraped
from scaled_rules import FACTOR, RULES_PATH, scaled

_NAMES = re.compile(r"\b(?:vllm_capacity_|vllm:)\w+")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert of one series over a whole recording.

    Attributes:
        alert: its name.
        severity: page, ticket or info.
        engine: of the series; empty where it is about more than one.
        first, last: recorded seconds of its first and last firing.
        seconds: for which it fired in all.
    """

    alert: str
    severity: str
    engine: str
    first: float
    last: float
    seconds: float


def judged(plays: Iterable[Played], folder: Path) -> dict[str, list[Firing]]:
    """By name of the recording: what fired in it."""
    rules = folder / "scaled.rules.yml"
    rules.write_text(scaled(RULES_PATH.read_text("utf-8"), FACTOR), encoding="utf-8")
    known = list(plays)
    with ThreadPoolExecutor(2) as pool:  # promtool works, we wait
        fired = pool.map(lambda play: list(_fired(play, rules, folder)), known)
        return {play.name: firings for play, firings in zip(known, fired, strict=True)}


def _fired(play: Played, rules: Path, folder: Path) -> Iterator[Firing]:
    length = int(play.pages[-1].t) + 1
    whole = f"[{length}s:1s]"
    firing = 'ALERTS{alertstate="firing"}'
    asked = {
        "first": f"min_over_time(timestamp({firing}){whole})",
        "last": f"max_over_time(timestamp({firing}){whole})",
        "seconds": f"sum_over_time({firing}{whole})",
    }
    wanted = set(_NAMES.findall(rules.read_text("utf-8")))
    case = {
        "interval": "1s",
        "input_series": [
            {"series": series, "values": " ".join(values)}
            for series, values in series_of(play, wanted, length).items()
        ],
        "promql_expr_test": [
            {"expr": expr, "eval_time": f"{length}s", "exp_samples": []} for expr in asked.values()
        ],
    }
    path = folder / f"{play.name}.test.yml"
    tests = {"rule_files": [str(rules)], "evaluation_interval": "1s", "tests": [case]}
    path.write_text(json.dumps(tests), encoding="utf-8")  # JSON is YAML
    found = defaultdict[tuple[str, str, str], dict[str, float]](dict)
    for part, answer in zip(asked, _answers(path, len(asked)), strict=True):
        for labels, value in answer:
            key = (labels["alertname"], labels["severity"], labels.get("engine", ""))
            found[key][part] = value
    for (alert, severity, engine), parts in sorted(found.items()):
        yield Firing(alert, severity, engine, **parts)


def series_of(play: Played, wanted: set[str], length: int) -> dict[str, list[str]]:
    """Values of every series of those metrics at 0 s, 1 s, …, as promtool writes them."""
    found = dict[str, list[str]]()
    latest = play.pages[0]
    following = iter(play.pages)
    upcoming = next(following, None)
    for second in range(length + 1):
        while upcoming is not None and upcoming.t <= second:
            latest, upcoming = upcoming, next(following, None)
        now = dict(_samples(latest, wanted))
        for series, value in now.items():
            found.setdefault(series, ["_"] * second).append(value)
        for series, values in found.items():
            if series not in now:
                values.append("stale" if values[-1] not in {"_", "stale"} else "_")
    return found


def _samples(page: Scraped, wanted: set[str]) -> Iterator[tuple[str, str]]:
    jobs = (("vllm-capacity", page.exporter), ("vllm", page.engine or ""))
    for job, text in jobs:
        for line in text.splitlines():
            name = line[: line.find("{")] if "{" in line else line.split(" ")[0]
            if name in wanted:
                series, _, value = line.rpartition(" ")
                opened = series if "{" in series else f"{series}{{}}"
                yield f'{opened[:-1].rstrip(",")}{_joined(opened)}job="{job}"}}', value.lstrip("+")


def _joined(series: str) -> str:
    return "" if series.endswith("{}") else ","


def _answers(tests: Path, count: int) -> list[list[tuple[dict[str, str], float]]]:
    """What promtool got for each expression: it tells it because nothing was expected."""
    command = ["promtool", "test", "rules", str(tests)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    output = outcome.stdout + outcome.stderr
    got = re.findall(r"^\s+got: (.*)$", output, re.MULTILINE)
    if "exp_samples" in output or (outcome.returncode and not got):
        raise RuntimeError(output[:2000])
    if not got:  # nothing expected, nothing there
        return [[] for _ in range(count)]
    return [
        [
            (dict(_LABEL.findall(labels)), float(value))
            for labels, value in re.findall(r"\{([^{}]*)\} (\S+?)(?:,|$)", line)
        ]
        for line in got
    ]
