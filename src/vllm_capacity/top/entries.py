"""The engines of all documents in one list, each with the age of what is said of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_capacity.top.feed import Feed
from vllm_capacity.top.reading import JsonObject, number, records, text

Key = tuple[str, str, str]

_SEVERITIES = ("ok", "unknown", "warning", "critical")
_NO_INTERVAL = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An engine, or a server that shows none.

    Attributes:
        origin: of the document.
        document: that it is in.
        document_age_seconds: how old that is.
        target: its server's part of the document.
        engine: its own part; None for a server that shows no engine.
    """

    origin: str
    document: JsonObject
    document_age_seconds: float
    target: JsonObject
    engine: JsonObject | None

    @property
    def key(self) -> Key:
        """What stays the same from one document to the next."""
        return (self.origin, text(self.target, "target") or "", text(self.engine, "engine") or "")

    def age_of(self, name: str) -> float | None:
        """Seconds since a source of its server last succeeded; None where it never did."""
        for source in records(self.target, "sources"):
            if text(source, "source") == name:
                return source_age_seconds(self.document, source, self.document_age_seconds)
        return None

    def is_old(self, seconds: float | None) -> bool:
        """Whether something of that age is older than the document promises."""
        limit = number(self.document, "stale_after_seconds") or _NO_INTERVAL
        return seconds is not None and seconds > limit

    @property
    def age_seconds(self) -> float | None:
        """Since its server's last page that could be read; None where there was none."""
        return self.age_of("vllm")

    @property
    def is_stale(self) -> bool:
        """Whether its numbers are older than they should be."""
        return self.is_old(self.age_seconds)

    @property
    def values(self) -> Mapping[str, Any]:
        """Its numbers by metric; empty without an engine."""
        found = (self.engine or {}).get("values")
        return found if isinstance(found, Mapping) else {}

    @property
    def severity(self) -> str:
        """How much attention it needs."""
        severity = text(self.engine, "severity")
        return severity if severity in _SEVERITIES else "unknown"

    @property
    def heat(self) -> tuple[int, float, float]:
        """Orders engines, the hottest last."""
        return (
            _SEVERITIES.index(self.severity),
            number(self.values, "saturation_ratio") or 0.0,
            number(self.values, "kv_cache_usage_ratio") or 0.0,
        )

    @property
    def room(self) -> float | None:
        """How many more requests of the usual size fit."""
        return number(self.values, "headroom_requests", "observed_mean")


def entries_of(feeds: Sequence[Feed], now: float, order: str = "hottest first") -> list[Entry]:
    """Every engine and every silent server, in one of the ``ORDERS``."""
    found = [entry for feed in feeds for entry in _of_feed(feed, now)]
    return sorted(found, key=ORDERS[order])


def _of_feed(feed: Feed, now: float) -> Iterator[Entry]:
    document = feed.document or {}
    for target in records(document, "targets"):
        engines: Sequence[JsonObject | None] = records(target, "engines") or (None,)
        for engine in engines:
            yield Entry(
                origin=feed.origin,
                document=document,
                document_age_seconds=feed.age_seconds(now),
                target=target,
                engine=engine,
            )


def source_age_seconds(
    document: JsonObject, source: JsonObject, document_age_seconds: float
) -> float | None:
    """Since a source's last success.

    Both times of the difference are the document's own, and its age is ours: clocks of two
    machines that disagree make nothing old.
    """
    made = number(document, "generated_timestamp_seconds")
    success = number(source, "last_success_timestamp_seconds")
    if made is None or success is None:
        return None
    return max(0.0, made - success) + document_age_seconds


def _by_heat(entry: Entry) -> tuple[Any, ...]:
    return (*(-part for part in entry.heat), *entry.key)


def _by_name(entry: Entry) -> tuple[Any, ...]:
    return entry.key


def _by_room(entry: Entry) -> tuple[Any, ...]:
    room = entry.room
    return (room is None, 0.0 if room is None else room, *entry.key)


#: Ways to order engines, as the key ``s`` goes through them.
ORDERS: Mapping[str, Callable[[Entry], tuple[Any, ...]]] = {
    "hottest first": _by_heat,
    "by name": _by_name,
    "least room first": _by_room,
}
