"""How single settings are written: durations, sizes, switches, addresses."""

import math
import re
from collections.abc import Callable
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.IGNORECASE)
_BYTES = {
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def duration_seconds(text: Any) -> float:
    """A duration as in ``5s``, ``500ms``, ``2m`` or a number of seconds.

    >>> duration_seconds("500ms")
    0.5

    Raises:
        ValueError: it is none, or not positive.
    """
    match = _DURATION.fullmatch(str(text).strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not match or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError("must be a positive duration such as 5s, 500ms or 2m")
    return seconds


def size_bytes(text: Any) -> int:
    """A size as in ``8MiB`` or a number of bytes.

    Raises:
        ValueError: it is none, or not positive.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = int(float(match[1]) * _BYTES[(match[2] or "B").lower()]) if match else 0
    if size <= 0:
        raise ValueError("must be a positive size such as 8MiB or 8388608")
    return size


def text(value: Any) -> str:
    """Any text but an empty one.

    Raises:
        ValueError: it is empty.
    """
    stripped = str(value).strip()
    if not stripped:
        raise ValueError("must not be empty")
    return stripped


def switch(value: Any) -> bool:
    """On or off, in the words of flags, YAML and environments.

    Raises:
        ValueError: it is neither.
    """
    word = str(value).strip().lower()
    if word in {"true", "yes", "1", "on"}:
        return True
    if word in {"false", "no", "0", "off"}:
        return False
    raise ValueError("must be true or false")


def several_texts(value: Any) -> tuple[str, ...]:
    """Some words, as a list or separated by commas.

    Raises:
        ValueError: there is none.
    """
    words = value if isinstance(value, list | tuple) else str(value).split(",")
    kept = tuple(word for word in (str(word).strip() for word in words) if word)
    if not kept:
        raise ValueError("must not be empty")
    return kept


def process_ids(value: Any) -> tuple[int, ...]:
    """Numbers of processes, as a list or separated by commas.

    Raises:
        ValueError: one is no positive number, or there is none.
    """
    words = several_texts(value)
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError("must be numbers of processes, as in 4711 or 4711,4712")
    return tuple(map(int, words))


def one_of(*choices: str) -> Callable[[Any], str]:
    """A reader of one of a few words, which raises ValueError for any other."""

    def read(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return word

    return read


def listen_address(value: Any) -> str:
    """An address to listen on, as in ``127.0.0.1:8935``, ``[::1]:8935`` or ``:8935``.

    Raises:
        ValueError: it is none.
    """
    host, separator, port = str(value).strip().rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, [ipv6]:port or :port")
    return f"{host}:{port}"


def path(value: Any) -> str:
    """A path of a URL.

    Raises:
        ValueError: it does not start with a slash.
    """
    stripped = text(value)
    if not stripped.startswith("/"):
        raise ValueError("must start with /")
    return stripped
