"""Scrapes as they are in life: late, failed, and of pages that changed while they were written."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from vllm_capacity.simulate.target import SimulatedTarget

_WRITING_SECONDS = 0.01  # a page of 50 kB beside a busy event loop
_FAMILY = b"# HELP "


@dataclass(frozen=True, kw_only=True, slots=True)
class Scraping:
    """How a scraper goes about it.

    Attributes:
        interval_seconds: time between scrapes.
        late_seconds: the most by which one comes late.
        failing_share: share of scrapes that time out, 0 to 1.
        torn_share: share of pages during whose writing an engine ended a step, 0 to 1. vLLM
            writes them in a thread, so that families at the top are older than those below.
        seed: seed of everything random.
    """

    interval_seconds: float = 1.0
    late_seconds: float = 0.0
    failing_share: float = 0.0
    torn_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape: when the page was complete, and the page; None where there was none."""

    at_seconds: float
    page: bytes | None


def scrapes(target: SimulatedTarget, how: Scraping, *, until_seconds: float) -> Iterator[Scrape]:
    """Scrape a target until ``until_seconds``, moving its time along."""
    random = Random(how.seed)  # noqa: S311  # nothing secret
    due = how.interval_seconds
    while due <= until_seconds:
        at = due + random.uniform(0, how.late_seconds)
        target.advance_to(at)
        page = target.page()
        if page is not None and random.random() < how.torn_share:
            at += _WRITING_SECONDS
            target.advance_to(at)
            page = _torn(page, target.page(), random)
        failed = random.random() < how.failing_share
        yield Scrape(at, None if failed else page)
        due += how.interval_seconds


def _torn(before: bytes, after: bytes | None, random: Random) -> bytes | None:
    """The upper families of one page and the lower ones of the next."""
    if after is None:
        return None
    older, newer = before.split(_FAMILY), after.split(_FAMILY)
    if len(older) != len(newer):  # another server already, or its first request
        return after
    cut = random.randrange(1, len(older))
    return _FAMILY.join([*older[:cut], *newer[cut:]])
