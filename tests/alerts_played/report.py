"""``make alert-report``: what fired when, as a table in docs/alerts.md.

With ``--webhook`` it is also played to an Alertmanager, and the lag of its calls is printed.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from judged import Firing, judged
from played import Played, all_played
from scaled_rules import RULES_PATH
from stack import Heard, heard

PAGE = Path(__file__).parents[2] / "docs" / "alerts.md"
FORESEEN = "VLLMPreemptionForeseen"
#: A forecast that nothing follows for so long is false.
FOLLOWS_SECONDS = 60.0
_QUEUE = frozenset(
    {
        "VLLMKVCacheSaturated",
        "VLLMQueueTimeSLOFastBurn",
        "VLLMQueueTimeSLOSlowBurn",
    }
)

Fired = Mapping[str, Sequence[Firing]]


def false_alarms(play: Played, fired: Sequence[Firing]) -> list[Firing]:
    """Pages before any symptom, and first forecasts of an engine that nothing followed."""
    return [
        firing
        for firing in fired
        if (firing.severity == "page" and not _has_symptom(play, firing))
        or (firing.alert == FORESEEN and not _is_followed(play, firing))
    ]


def _has_symptom(play: Played, firing: Firing) -> bool:
    about = {firing.engine} if firing.engine else {q.engine for q in play.queues}
    if firing.alert in _QUEUE:
        return any(q.begin <= firing.first for q in play.queues if q.engine in about)
    if firing.alert == "VLLMPreempting":
        return play.preempted.get(firing.engine, firing.first + 1) <= firing.first
    return firing.alert == "VLLMCapacityTargetDown" and any(
        begin <= firing.first for begin, _ in play.down
    )


def _is_followed(play: Played, firing: Firing) -> bool:
    preempted = play.preempted.get(firing.engine)
    signs = [*play.full.get(firing.engine, ()), *([] if preempted is None else [preempted])]
    return any(firing.first <= t <= firing.first + FOLLOWS_SECONDS for t in signs)


def firsts(fired: Sequence[Firing]) -> dict[str, Firing]:
    """By alert, the firing of the engine that fired first."""
    ordered = sorted(fired, key=lambda firing: firing.first, reverse=True)
    return {firing.alert: firing for firing in ordered}


def table(plays: Sequence[Played], fired: Fired) -> Iterator[str]:
    """A row for each alert that fired anywhere, a column for each recording or scenario."""
    alerts = [name for name in _alerts() if any(name in firsts(fired[p.name]) for p in plays)]
    for part in (plays[: len(plays) // 2 + 1], plays[len(plays) // 2 + 1 :]):
        yield "| | " + " | ".join(play.name for play in part) + " |"
        yield "|---|" + "--:|" * len(part)
        yield _row("first preemption", [_seconds(p.first_preemption) for p in part])
        yield _row("queue", [_seconds(p.first_long_queue) for p in part])
        for alert in alerts:
            cells = [_cell(p, firsts(fired[p.name]).get(alert)) for p in part]
            yield _row(alert.removeprefix("VLLM"), cells)
        yield _row("false", [str(len(false_alarms(p, fired[p.name]))) for p in part])
        yield ""
    silent = ", ".join(name for name in _alerts() if name not in alerts)
    yield f"Silent in all of them: {silent}."


def _alerts() -> list[str]:
    groups = yaml.safe_load(RULES_PATH.read_text("utf-8"))["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _seconds(t: float | None) -> str:
    return "–" if t is None else f"{t:.0f}"


def _cell(play: Played, firing: Firing | None) -> str:
    if firing is None:
        return ""
    if play.first_preemption is None:
        return f"{firing.first:.0f}"
    return f"{firing.first:.0f} ({firing.first - play.first_preemption:+.0f})".replace("-", "−")


def with_table(page: str, lines: Iterator[str]) -> str:
    """The page with the table between its markers."""
    body = "\n".join(lines)
    return re.sub(
        r"(<!-- begin played -->\n).*?(<!-- end played -->)",
        lambda found: f"{found[1]}{body}\n{found[2]}",
        page,
        flags=re.DOTALL,
    )


def delays(fired: Fired, notified: Sequence[Heard]) -> Iterator[tuple[Firing, str, float | None]]:
    """Of each first firing: how many recorded seconds later the webhook heard of it, if ever."""
    for name, firings in fired.items():
        for firing in firings:
            times = [
                h.t
                for h in notified
                if (h.played, h.alert, h.engine) == (name, firing.alert, firing.engine)
                and h.status == "firing"
            ]
            yield firing, name, min(times) - firing.first if times else None


def main(arguments: list[str]) -> int:
    """Write the table; with ``--webhook`` also play it to a real Alertmanager."""
    plays = all_played()
    with tempfile.TemporaryDirectory() as folder:
        fired = judged(plays, Path(folder))
        if "--webhook" in arguments:
            for firing, name, delay in delays(fired, heard(plays, Path(folder))):
                told = "never" if delay is None else f"{delay:+.1f} s"
                sys.stdout.write(f"{name:18} {firing.alert:36} {firing.first:5.0f} s  {told}\n")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(plays, fired)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
