"""Prometheus text → the samples that are wanted, fast.

Of some six hundred lines on a vLLM page, fifty are read here. One regular expression, a trie of the
wanted names, finds them without a look at the others; and since a line stands on page after page
but for its number, the text before its last space is read once and remembered.
"""

import re
import string
from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import NamedTuple

from vllm_capacity.errors import ExpositionError

_LABEL = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\.)*)"[ \t]*(,|(?=}))'
)
_NAME_CHARACTERS = (string.ascii_letters + string.digits + "_:").encode()
_ESCAPE = re.compile(r'\\([\\"n])')

MAX_SAMPLES = 100_000
MAX_REMEMBERED = 20_000
MAX_REMEMBERED_BYTES = 8192


class Series(NamedTuple):
    """A name with its labels, without a value."""

    name: str
    labels: Mapping[str, str]


Sample = tuple[Series, float]
"""One reading of a series."""


class ExpositionParser:
    """Reads page after page of one target, keeping only the samples of certain names.

    Args:
        names: full names of the samples wanted, as in ``vllm:prompt_tokens_total``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._lines = _wanted_lines(tuple(names)).findall
        self._remembered: dict[bytes, Series] = {}

    def parse(self, page: bytes) -> list[Sample]:
        """The wanted samples of a page, in its order.

        A page in Prometheus's text format or OpenMetrics; timestamps and exemplars are ignored.

        Raises:
            ExpositionError: a wanted line cannot be read, the page was cut (its last line has
                no end), or it holds more wanted samples than any vLLM has. Never half a page.
        """
        if page and not page.endswith(b"\n"):
            raise ExpositionError(
                f"the page of {len(page)} bytes was cut: its last line has no end"
            )
        lines = self._lines(b"\n" + page)
        if len(lines) > MAX_SAMPLES:
            raise ExpositionError(
                f"{len(lines)} wanted samples on one page, more than {MAX_SAMPLES}"
            )
        remembered = self._remembered
        samples: list[Sample] = []
        for line in lines:
            head, _, number = line.rpartition(b" ")
            series = remembered.get(head)
            if series is None:
                samples.append(self._first_sight(line, head, number))
            else:
                samples.append((series, _number(number)))
        return samples

    def _first_sight(self, line: bytes, head: bytes, last_word: bytes) -> Sample:
        series, rest = _read_series(line)
        words = rest.split(None, 1)
        if not words:
            raise ExpositionError(f"no value in {_shown(line)}")
        # With a timestamp or an exemplar behind it, the value is not the line's last word.
        if words == [last_word]:
            self._remember(head, series)
        return series, _number(words[0])

    def _remember(self, head: bytes, series: Series) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        if len(head) <= MAX_REMEMBERED_BYTES:
            self._remembered[head] = series


@lru_cache(maxsize=8)  # the same for every target
def _wanted_lines(names: tuple[str, ...]) -> re.Pattern[bytes]:
    return re.compile(rf"\n[ \t]*((?:{_trie_pattern(names)})(?![\w:])[^\n]*)".encode())


def _trie_pattern(names: Iterable[str]) -> str:
    """An alternation in which common beginnings stand once: a line fails at its first letters.

    >>> _trie_pattern(["ab", "abc", "ad"])
    'a(?:b(?:c)?|d)'
    """
    branches: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        branches.setdefault(name[:1], []).append(name[1:])
    ends_here = branches.pop("", None) is not None
    parts = [re.escape(first) + _trie_pattern(rest) for first, rest in branches.items()]
    if not parts:
        return ""
    if ends_here:
        return f"(?:{'|'.join(parts)})?"
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _read_series(line: bytes) -> tuple[Series, bytes]:
    after_name = line.lstrip(_NAME_CHARACTERS)
    name = intern(line[: len(line) - len(after_name)].decode("ascii"))
    rest = after_name.lstrip(b" \t")
    if not rest.startswith(b"{"):
        return Series(name, {}), rest
    labels, end = _read_labels(rest)
    return Series(name, labels), rest[end:]


def _read_labels(text: bytes) -> tuple[dict[str, str], int]:
    """Labels of a text that starts with ``{``, and where they end.

    Words are interned: the same few stand in every series of every target.
    """
    labels: dict[str, str] = {}
    position = 1
    while text[position : position + 1] != b"}":
        match = _LABEL.match(text, position)
        if match is None:
            raise ExpositionError(f"labels that cannot be read in {_shown(text)}")
        value = _unescaped(match[2].decode("utf-8", "replace"))
        labels[intern(match[1].decode("ascii"))] = intern(value)
        position = match.end()
    return labels, position + 1


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def _number(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ExpositionError(f"no number: {_shown(text)}") from None
    if b"_" in text:  # Python reads 1_0 as ten; Prometheus does not.
        raise ExpositionError(f"no number: {_shown(text)}")
    return number


def _shown(line: bytes, limit: int = 60) -> str:
    text = line[:limit].decode("utf-8", "replace")
    return repr(text + ("…" if len(line) > limit else ""))
