"""The shipped rules on a faster clock: every duration divided by one factor."""

import re
from collections.abc import Callable
from pathlib import Path

RULES_PATH = Path(__file__).parents[2] / "alerts" / "vllm-capacity.rules.yml"

#: The rules are written for one scrape in 15 seconds, recordings hold one a second.
FACTOR = 15.0

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(
    r"(?P<before>^\s*(?:for|keep_firing_for): |\[|\boffset )(?P<number>\d+)(?P<unit>ms|s|m|h|d)\b",
    re.MULTILINE,
)


def scaled(rules: str, factor: float) -> str:
    """The same rules with ``for``, ``keep_firing_for``, ranges and offsets shortened.

    Numbers that the rules compare with are left alone: they are the exporter's own seconds.
    """
    return _DURATION.sub(_divider(factor), rules)


def _divider(factor: float) -> Callable[[re.Match[str]], str]:
    def divided(found: re.Match[str]) -> str:
        milliseconds = int(found["number"]) * _MILLISECONDS[found["unit"]] / factor
        return f"{found['before']}{_written(round(milliseconds))}"

    return divided


def _written(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{milliseconds}ms" if rest else f"{seconds}s"
