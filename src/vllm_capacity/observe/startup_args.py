"""Python values as vLLM's log prints them: arguments and configuration, read without running."""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_capacity.secrecy import HIDDEN, is_secret_name, without_secrets

_MARKS = re.compile(r"[\[\](){}<>,'\"\\]")
_ENUM = re.compile(r"<[\w.]{1,200}: ([^<>]{1,200})>")
_KEY = re.compile(r"\s*(?:'(\w{1,100})'|\"(\w{1,100})\"): ?(.*)|\s*(\w{1,100})=(.*)", re.DOTALL)
#: Text is kept under these names alone: what is run and how it is laid out in memory. Under all
#: other names numbers and switches are kept, and of text only that there is some.
TEXT_NAMES = frozenset(
    {
        *("model", "model_tag", "served_model_name", "tokenizer", "tokenizer_mode"),
        *("dtype", "kv_cache_dtype", "cache_dtype", "quantization", "load_format", "device"),
        *("runner", "task", "convert", "config_format", "lora_dtype", "performance_mode"),
        *("distributed_executor_backend", "data_parallel_backend", "all2all_backend"),
        *("attention_backend", "moe_backend", "scheduling_policy", "max_model_len"),
        *("mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_cache_mode", "mm_encoder_tp_mode"),
        *("kv_cache_dtype_skip_layers", "kv_offloading_backend", "subparser"),
        *("method", "mode", "level", "backend", "cudagraph_mode", "rope_type"),
        *("kv_connector", "kv_role"),
    }
)
#: What is printed without quotes: auto, torch.bfloat16.
_WORD = re.compile(r"[\w./:-]{1,200}")
_MAX_TEXT = 1_000
_MAX_DEPTH = 40
_MAX_BITS = 64
_BEFORE_VALUE = frozenset(" =:,([{")
_UNREAD = (ValueError, SyntaxError, RecursionError, MemoryError, TypeError)


def read_arguments(text: str) -> dict[str, Any]:
    """The items of a printed dict, ``Namespace(…)`` or ``key=value, …`` that can be read.

    An enum becomes its value, a function is left out, and so are what nobody gave (None) and what
    is called like a secret. Text is kept under names that are known to hold none (an allow-list);
    under any other name it becomes ``***``. Where the text is cut, the cut item is left out.
    """
    return {key: value for key, value in _items(text) if value is not None}


def _items(text: str) -> Iterator[tuple[str, Any]]:
    for item in _top_level_items(text):
        match = _KEY.fullmatch(item)
        if match is None:
            continue
        key = match[1] or match[2] or match[4]
        if not is_secret_name(key):
            yield key, _value(key, match[3] if match[4] is None else match[5])


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


def _value(name: str, text: str) -> Any:
    text = _ENUM.sub(r"\1", text.strip())
    if text.startswith("<"):  # a function or another object: says nothing
        return None
    try:
        value = ast.literal_eval(text)
    except _UNREAD:
        value = text if _WORD.fullmatch(text) else HIDDEN
    return kept_value(name, value)


def kept_value(name: str, value: Any) -> Any:
    """An argument's value as JSON can hold it, without text that may be a secret."""
    if isinstance(value, Mapping):
        return {
            str(key): kept_value(str(key), inner)
            for key, inner in value.items()
            if not is_secret_name(str(key))
        }
    if isinstance(value, list | tuple):
        return [kept_value(name, inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((kept_value(name, inner) for inner in value), key=str)
    return _kept_text(name, value) if isinstance(value, str) else _plain_number(value)


def _kept_text(name: str, text: str) -> str:
    if text and name not in TEXT_NAMES:
        return HIDDEN
    return without_secrets(text[:_MAX_TEXT].encode("utf-8", "replace").decode())


def _plain_number(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    is_plain = value is None or isinstance(value, bool)
    is_sane = isinstance(value, int) and value.bit_length() <= _MAX_BITS
    return value if is_plain or is_sane else None
