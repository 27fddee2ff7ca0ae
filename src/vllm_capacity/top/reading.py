"""Reading a document that may lack anything: what is not there, or is no number, is None."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

JsonObject = Mapping[str, Any]


def _found(place: object, path: Sequence[str]) -> object:
    for key in path:
        if not isinstance(place, Mapping):
            return None
        place = place.get(key)
    return place


def number(place: object, *path: str) -> float | None:
    """The finite number there.

    >>> number({"values": {"kv_cache_usage_ratio": 0.5}}, "values", "kv_cache_usage_ratio")
    0.5
    """
    value = _found(place, path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def seconds_to_full(values: JsonObject) -> float | None:
    """Until no block is free; infinite, "+Inf" in JSON, while the cache does not fill."""
    name = "time_to_exhaustion_seconds"
    return math.inf if values.get(name) == "+Inf" else number(values, name)


def listed(place: object, *path: str) -> tuple[object, ...]:
    """What the list there holds."""
    value = _found(place, path)
    return tuple(value) if isinstance(value, list | tuple) else ()


def text(place: object, *path: str) -> str | None:
    """The text there, unless it is empty."""
    value = _found(place, path)
    return value if isinstance(value, str) and value else None


def texts(place: object, *path: str) -> tuple[str, ...]:
    """The texts of the list there."""
    return tuple(value for value in listed(place, *path) if isinstance(value, str))


def records(place: object, *path: str) -> tuple[JsonObject, ...]:
    """The objects of the list there."""
    return tuple(value for value in listed(place, *path) if isinstance(value, Mapping))


def numbers(place: object, *path: str) -> Mapping[str, float]:
    """The numbers of the map there, by their keys."""
    value = _found(place, path)
    return dict(_known(value)) if isinstance(value, Mapping) else {}


def _known(values: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for key in values:
        value = number(values, key)
        if value is not None:
            yield str(key), value
