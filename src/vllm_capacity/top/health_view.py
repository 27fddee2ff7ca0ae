"""How the watching itself goes: each source with its age, what failed, who disagrees."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from vllm_capacity.top.entries import Entry, source_age_seconds
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.pen import DIM, Pen
from vllm_capacity.top.reading import JsonObject, records, text, texts
from vllm_capacity.top.words import age


def sources(feeds: Sequence[Feed], entry: Entry, now: float, width: int, pen: Pen) -> list[Text]:
    """All there is to say of the server that is shown, and what fails at the others."""
    lines: list[Text] = []
    for feed in feeds:
        for target in records(feed.document, "targets"):
            is_shown = target is entry.target
            facts = list(_of_shown(feed, target, now) if is_shown else _failing(feed, target, now))
            if facts:
                said = f"{text(target, 'target') or 'a server'}: {'; '.join(facts)}"
                lines += pen.wrapped(said, width, "" if is_shown else DIM)
    return lines


def _of_shown(feed: Feed, target: JsonObject, now: float) -> Iterator[str]:
    for source in records(target, "sources"):
        yield _source(feed, source, now)
    missing = texts(target, "missing_metrics")
    if missing:
        yield f"not on its page: {', '.join(missing)}"
    message = text(target, "prediction", "message")
    if message is not None:
        yield f"prediction: {message}"
    yield from _denials(target)


def _failing(feed: Feed, target: JsonObject, now: float) -> Iterator[str]:
    """A source that is not there is a state to know; one that fails is to be mended."""
    for source in records(target, "sources"):
        if text(source, "last_error") is not None and not _is_absent(source):
            yield _source(feed, source, now)


def _source(feed: Feed, source: JsonObject, now: float) -> str:
    seconds = source_age_seconds(feed.document or {}, source, feed.age_seconds(now))
    ago = None if seconds is None else f"{age(seconds)} ago"
    name, error = text(source, "source") or "a source", text(source, "last_error")
    if error is None:
        return f"{name} not asked yet" if ago is None else f"{name} ok {ago}"
    said = f"{name} {'is not there' if _is_absent(source) else 'failed'}: {error}"
    return said if ago is None else f"{said} (last worked {ago})"


def _is_absent(source: JsonObject) -> bool:
    return text(source, "last_reason") == "absent"


def _denials(target: JsonObject) -> Iterator[str]:
    for row in records(target, "arguments"):
        denied_by = row.get("denied_by")
        if isinstance(denied_by, Mapping):
            said = f"{text(row, 'argument')}: {text(row, 'source')} says {text(row, 'value')}"
            yield from (f"{said}, {source} says {value}" for source, value in denied_by.items())
