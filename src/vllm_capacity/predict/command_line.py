"""A vLLM command line as a mapping of arguments, read as vLLM's own parser reads it.

Source: vLLM 0.32 ``utils/argparse_utils.py``, ``FlexibleArgumentParser.parse_args``;
``engine/arg_utils.py``, ``EngineArgs.add_cli_args``; ``entrypoints/launchers/cli_args.py``.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm_capacity.predict.argument_names import NEUTRAL, SHORT, SWITCHES
from vllm_capacity.predict.engine_flags import BY_NAME, ENGINE_FLAGS, parsed_value

_ALIASES: Mapping[str, str] = SHORT | {
    alias: flag.name for flag in ENGINE_FLAGS for alias in flag.aliases
}
#: Parts of ``--speculative-config`` with flags of their own (``arg_utils.py``, since 0.32).
_SPECULATIVE = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
}
_SERVER = re.compile(r"serve|(?:.*[./])?api_server(?:\.py)?")
_SHORT_WITH_NUMBER = re.compile(r"(-[a-z]{1,3})(\d+)")
_LEVEL = re.compile(r"-O=?(.*)")
_SHORTEST_PREFIX = 5


def arguments_of(words: Sequence[str]) -> dict[str, Any]:
    """Arguments by vLLM's names; of those that memory does not hang on only that they are given.

    Args:
        words: of a command line; what stands before ``serve`` or ``…api_server`` is dropped.
    """
    mapping: dict[str, Any] = {}
    words = _after_the_server(words)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word.startswith("-") and word.strip("-"):
            position = _take(mapping, words, position, _split(word))
    return mapping


def flags_of(arguments: Mapping[str, Any]) -> str:
    """Arguments as vLLM's own flags, ready for a shell; ``arguments_of`` reads them back.

    Args:
        arguments: by vLLM's names, none of them None; some of ``ENGINE_FLAGS``.
    """
    return shlex.join(word for name, value in arguments.items() for word in _words(name, value))


def _words(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if isinstance(value, list | tuple):
        return [f"--{dashed}", *map(str, value)]
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return [f"--{dashed}={text}"] if text.startswith("-") else [f"--{dashed}", text]


def starts_a_server(words: Sequence[str]) -> bool:
    """Whether a command line is that of ``vllm serve`` or ``…api_server``."""
    return any(_SERVER.fullmatch(word) for word in words)


def _after_the_server(words: Sequence[str]) -> Sequence[str]:
    for index, word in enumerate(words):
        if _SERVER.fullmatch(word):
            return words[index + 1 :]
    return words


class _Given(NamedTuple):
    """An argument's name, the path inside it (``--json-arg.key``), and the text behind ``=``."""

    name: str
    path: str
    text: str | None


def _split(word: str) -> _Given:
    if level := _LEVEL.fullmatch(word):
        return _Given("optimization_level", "", level[1] or None)
    if glued := _SHORT_WITH_NUMBER.fullmatch(word):
        head, equals, text = glued[1], "=", glued[2]
    else:
        head, equals, text = word.partition("=")
    name, _, path = head.partition(".") if head.startswith("--") else (head, "", "")
    name = _ALIASES.get(name.replace("_", "-")) or _whole(name.lstrip("-").replace("-", "_"))
    return _Given(name, path, text if equals else None)


def _whole(name: str) -> str:
    """A name that argparse completes, as in ``--gpu-memory-util``."""
    if name in BY_NAME or name in NEUTRAL or len(name) < _SHORTEST_PREFIX:
        return name
    begun = [known for known in BY_NAME.keys() | NEUTRAL if known.startswith(name)]
    return begun[0] if len(begun) == 1 and begun[0] in BY_NAME else name


def _take(mapping: dict[str, Any], words: Sequence[str], position: int, given: _Given) -> int:
    """Put one argument into the mapping; where the next one stands."""
    name, path, text = given
    negated = name.startswith("no_") and name[3:] in BY_NAME.keys() | SWITCHES
    name = name[3:] if negated else name
    flag = BY_NAME.get(name)
    is_switch = negated or name in SWITCHES or (flag is not None and flag.type is bool)
    if text is None and not is_switch and position < len(words) and not _is_flag(words[position]):
        text = words[position]
        position += 1
    if name in _SPECULATIVE:
        _put(mapping, "speculative_config", _SPECULATIVE[name], text)
    elif flag is None:
        mapping[name] = _asks_for_something(text)
    elif flag.type is tuple:
        mapping[name], position = _several(words, position, text)
    elif path and flag.type is dict:
        _put(mapping, name, path, text)
    else:
        mapping[name] = (not negated) if text is None else parsed_value(text, flag)
    return position


def _asks_for_something(text: str | None) -> bool:
    return text is None or text.lower() not in {"", "0", "false", "none", "null", "[]", "{}"}


def _several(words: Sequence[str], position: int, first: str | None) -> tuple[list[str], int]:
    """The words of an argument that takes several, and where the next argument starts."""
    found = [] if first is None else [first]
    while position < len(words) and not _is_flag(words[position]):
        found.append(words[position])
        position += 1
    return [part for word in found for part in word.split(",")], position


def _put(mapping: dict[str, Any], name: str, path: str, text: str | None) -> None:
    """``--json-arg.key.inner value``; vLLM reads the value as JSON where it is any."""
    *outer, last = path.split(".")
    inner = mapping.setdefault(name, {})
    for key in outer:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else {}
    if isinstance(inner, dict):
        inner[last.removesuffix("+")] = _json(text)


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)
