"""Python values as vLLM's log prints them: arguments and configuration, read without running."""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MARKS = re.compile(r"[\[\](){}<>,'\"\\]")
_ENUM = re.compile(r"<[\w.]{1,200}: ([^<>]{1,200})>")
_KEY = re.compile(r"\s*(?:'(\w{1,100})'|\"(\w{1,100})\"): ?(.*)|\s*(\w{1,100})=(.*)", re.DOTALL)
_SECRET_KEY = re.compile(
    r"(?:^|[_-])(?:token|password|passwd|secret|credentials?|api_?keys?|access_?keys?)$",
    re.IGNORECASE,
)
_SECRET_WORD = re.compile(
    r"(?:token|password|passwd|secret|api_?key|access_?key)[\"']?\s*[=:]\s*[\"']?[^\s\"',)}]",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]{1,200}:[^/\s@]{1,200}(?=@)"
    r"|(?<=Bearer )[^\s\"']+|(?<=Signature=)[^\s&\"']+"
)
_MAX_TEXT = 1_000
_MAX_DEPTH = 40
_MAX_BITS = 64
_BEFORE_VALUE = frozenset(" =:,([{")
_UNREAD = (ValueError, SyntaxError, RecursionError, MemoryError, TypeError)


def read_arguments(text: str) -> dict[str, Any]:
    """The items of a printed dict, ``Namespace(…)`` or ``key=value, …`` that can be read.

    Values that are no literals stay text (an enum becomes its value, a function is left out);
    what nobody gave (None) is left out, and so is whatever may be a secret. Where the text is
    cut, the cut item is left out.
    """
    return {key: value for key, value in _items(text) if value is not None}


def without_secrets(text: str) -> str:
    """Text with tokens, keys and passwords in it made unreadable."""
    return _SECRET_TEXT.sub("***", text)


def _items(text: str) -> Iterator[tuple[str, Any]]:
    for item in _top_level_items(text):
        match = _KEY.fullmatch(item)
        if match is None:
            continue
        key = match[1] or match[2] or match[4]
        value = _value(match[3] if match[4] is None else match[5])
        if not _SECRET_KEY.search(key):
            yield key, value


def _top_level_items(text: str) -> Iterator[str]:
    """Items that end with a comma or the closing bracket; one that is cut does not."""
    opening = re.match(r"\s*(?:\w+\(|\{)", text)
    begin = opening.end() if opening else 0
    open_brackets = ""
    for where, char in _unquoted_marks(text, begin):
        if char == "," and not open_brackets:
            yield text[begin:where]
            begin = where + 1
        elif char in "[({" or (char == "<" and text[where - 1 : where] in _BEFORE_VALUE):
            open_brackets += char
        elif char in "])}" and not open_brackets:
            yield text[begin:where]
            return
        elif char in "])}" or (char == ">" and open_brackets.endswith("<")):
            open_brackets = open_brackets[:-1]
        if len(open_brackets) > _MAX_DEPTH:
            return


def _unquoted_marks(text: str, begin: int) -> Iterator[tuple[int, str]]:
    position, quote = begin, ""
    for mark in _MARKS.finditer(text, begin):
        where, char = mark.start(), mark[0]
        if where < position:
            continue
        if char == "\\":
            position = where + 2
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            yield where, char


def _value(text: str) -> Any:
    text = _ENUM.sub(r"\1", text.strip())
    if text.startswith("<"):  # a function or another object: says nothing
        return None
    try:
        return _plain(ast.literal_eval(text))
    except _UNREAD:
        return None if _SECRET_WORD.search(text) else without_secrets(text[:_MAX_TEXT])


def _plain(value: Any) -> Any:
    """As JSON can hold it, without secrets."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(inner)
            for key, inner in value.items()
            if not _SECRET_KEY.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=str)
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value[:_MAX_TEXT].encode("utf-8", "replace").decode())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    is_plain = value is None or isinstance(value, bool)
    is_sane = isinstance(value, int) and value.bit_length() <= _MAX_BITS
    return value if is_plain or is_sane else None
