"""Reads typed values out of a JSON mapping and collects every fault on the way."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_capacity.errors import Fault

#: Larger integers cannot describe a model or a machine; they are slips or attacks.
LARGEST_INTEGER = 1 << 50


class Fields:
    """One mapping with its path; a value that is absent or null reads as the default.

    Attributes:
        faults: shared by all nested readers, in the order of reading.
    """

    def __init__(self, values: Mapping[str, Any], *, path: str = "", faults: list[Fault]) -> None:
        self.values = values
        self.path = path
        self.faults = faults

    def has(self, key: str) -> bool:
        """Whether ``key`` holds something other than null."""
        return self.values.get(key) is not None

    def fault(self, key: str, problem: str) -> None:
        """Record, once however often it is read, that the value at ``key`` is wrong."""
        fault = Fault(self.path + key, self.values.get(key), problem)
        if fault not in self.faults:
            self.faults.append(fault)

    def integer(self, key: str, *, minimum: int = 1, maximum: int = LARGEST_INTEGER) -> int | None:
        """The whole number at ``key``."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, "must be a whole number")
            return None
        if not minimum <= value <= maximum:
            self.fault(key, f"must be between {minimum} and {maximum}")
            return None
        return value

    def required_integer(self, *keys: str, minimum: int = 1, maximum: int = LARGEST_INTEGER) -> int:
        """The whole number at the first of ``keys`` that is present.

        Where there is none, a fault is recorded and ``minimum`` stands in, so that reading can
        go on and find the other faults.
        """
        for key in keys:
            if self.has(key):
                value = self.integer(key, minimum=minimum, maximum=maximum)
                return minimum if value is None else value
        self.fault(keys[0], "is missing; add the model's value")
        return minimum

    def number(self, key: str, *, minimum: float, maximum: float) -> float | None:
        """The finite number at ``key``."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(key, "must be a number")
            return None
        if not math.isfinite(value) or not minimum <= value <= maximum:
            self.fault(key, f"must be a finite number between {minimum} and {maximum}")
            return None
        return float(value)

    def boolean(self, key: str) -> bool | None:
        """The truth value at ``key``."""
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.fault(key, "must be true or false")
        return None

    def text(self, key: str, *, among: Sequence[str] = ()) -> str | None:
        """The string at ``key``."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.fault(key, "must be a string")
            return None
        if among and value not in among:
            self.fault(key, f"must be one of {', '.join(among)}")
            return None
        return value

    def mapping(self, key: str) -> "Fields | None":
        """The object at ``key``."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            self.fault(key, "must be an object")
            return None
        return Fields(value, path=f"{self.path}{key}.", faults=self.faults)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """The list of strings at ``key``."""
        return self._sequence(key, str, "strings")

    def integers(self, key: str) -> tuple[int, ...] | None:
        """The list of whole numbers at ``key``."""
        return self._sequence(key, int, "whole numbers")

    def _sequence(self, key: str, kind: type, what: str) -> tuple[Any, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(
            isinstance(item, kind) and not isinstance(item, bool) for item in value
        ):
            self.fault(key, f"must be a list of {what}")
            return None
        return tuple(value)
