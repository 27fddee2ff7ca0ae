"""One mapping of the web configuration, read key by key; what is wrong is collected."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vllm_capacity.errors import Fault
from vllm_capacity.secrecy import HIDDEN

T = TypeVar("T")

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_LONGEST_SECONDS = 86400.0


def switch(text: str) -> bool:
    """A boolean of YAML 1.1.

    Raises:
        ValueError: it is none.
    """
    word = text.lower()
    if word in {"true", "yes", "on", "y"}:
        return True
    if word in {"false", "no", "off", "n"}:
        return False
    raise ValueError("must be true or false")


def duration_seconds(text: str) -> float:
    """A duration as Go writes it, as in ``500ms`` or ``1m30s``; 0 needs no unit.

    Raises:
        ValueError: it is none, or longer than a day.
    """
    if text == "0":
        return 0.0
    if _DURATION.fullmatch(text) is None:
        raise ValueError("must be a duration with its unit, as in 1s or 500ms")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _LONGEST_SECONDS:
        raise ValueError("must not be longer than a day")
    return seconds


class Section:
    """A mapping whose keys are known.

    Args:
        where: its path in the file; empty for the file itself.
        value: what stands there; nothing is an empty mapping, as in Go.
        known: keys that it may have; None: any.
        faults: grows.
    """

    def __init__(
        self, where: str, value: Any, known: tuple[str, ...] | None, faults: list[Fault]
    ) -> None:
        self._where, self._faults = where, faults
        self._values: Mapping[str, Any] = {}
        if isinstance(value, dict):
            self._values = value
        elif value != "":
            faults.append(Fault(where or "web.config.file", HIDDEN, "must be a mapping"))
        for key in self._values:
            if known is not None and key not in known:
                self.fault(key, HIDDEN, f"is not one of {', '.join(known)}")
        self._known = known

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._values if self._known is None or key in self._known)

    def fault(self, key: str, value: Any, problem: str) -> None:
        """Note what is wrong with a key."""
        self._faults.append(Fault(f"{self._where}.{key}".lstrip("."), value, problem))

    def value(self, key: str) -> Any:
        """What stands there; an empty text for nothing."""
        return self._values.get(key, "")

    def text(self, key: str) -> str:
        """A text; empty for nothing."""
        value = self.value(key)
        if isinstance(value, str):
            return value
        self.fault(key, HIDDEN, "must be a text")
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty for nothing."""
        value = self.value(key)
        if value == "":
            return ()
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value)
        self.fault(key, HIDDEN, "must be a list of texts")
        return ()

    def parsed(
        self, key: str, parse: Callable[[str], T], *, default: T, problem: str | None = None
    ) -> T:
        """A text, parsed; ``default`` for nothing and for what cannot be parsed."""
        text = self.text(key)
        if text == "":
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.fault(key, text, problem or str(error))
            return default

    def one_of(self, key: str, choices: Mapping[str, T], default: T) -> T:
        """What a word stands for."""
        word = self.text(key)
        if word == "":
            return default
        if word not in choices:
            self.fault(key, word, f"must be one of {', '.join(choices)}")
        return choices.get(word, default)
