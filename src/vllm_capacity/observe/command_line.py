"""A process's command line: whose it is, and what of it may be kept."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from vllm_capacity.secrecy import HIDDEN

#: vLLM's title of a process: VLLM_PROCESS_NAME_PREFIX, two colons, what it does.
_TITLE = re.compile(
    r"[^\s:]{1,100}::(?:EngineCore|Worker|APIServer|DPCoordinator|DPSupervisor)(?:_[\w]*)?$"
)
_DATA_PARALLEL_RANK = re.compile(r"_DP_?(\d+)")
_NUMBER = re.compile(
    r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?[kmgtKMGT]?i?[bB]?|true|false|auto|none", re.IGNORECASE
)
_FLAG = re.compile(r"--?[A-Za-z][\w.-]{0,100}")
_OPTIMIZATION = re.compile(r"-O\.?\w{0,40}")
#: Text is kept as the value of these alone; any other value only if it is a number or a switch.
_TEXTS = frozenset(
    {
        *("model", "model-tag", "served-model-name", "tokenizer", "tokenizer-mode", "revision"),
        *("config", "dtype", "kv-cache-dtype", "quantization", "load-format", "device", "task"),
        *("runner", "convert", "config-format", "lora-dtype", "performance-mode", "host", "m"),
        *("distributed-executor-backend", "data-parallel-backend", "data-parallel-address"),
        *("attention-backend", "moe-backend", "all2all-backend", "scheduling-policy", "q"),
        *("device-ids", "mamba-cache-dtype", "mamba-ssm-cache-dtype", "mamba-cache-mode"),
        *("mm-encoder-tp-mode", "kv-offloading-backend", "kv-cache-dtype-skip-layers"),
        *("cudagraph-mode", "method", "mode", "level", "backend", "rope-type", "kv-connector"),
        "kv-role",
    }
)
_LISTS = frozenset({"served-model-name", "device-ids", "kv-cache-dtype-skip-layers"})
_FORMS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|\?.*|\b(?:hf_|sk-|ghp_|glpat-|nvapi-|xox[abprs]-)[\w-]{4,}"
)
_SECRET_NAME = re.compile(
    r"(?:^|-)(?:token|keys?|api-?keys?|password|passwd|pwd|secret|credentials?|auth|bearer)$",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"(?:^|/)vllm$|/vllm/entrypoints/\w+/api_server\.py$")
_MODULE = re.compile(r"vllm\.(?:entrypoints|v1)(?:\.\w+)*")


def words_of(cmdline: bytes) -> tuple[str, ...]:
    """The words of ``/proc/<pid>/cmdline``; a title that a process gave itself is one word."""
    text = cmdline.decode("utf-8", "replace").rstrip("\0")
    return tuple(text.split("\0")) if text else ()


def is_vllm(words: Sequence[str]) -> bool:
    """Whether a command line is vLLM's: by its title, its module, or its program.

    Source: vLLM ``utils/system_utils.py`` ``set_process_title`` (0.10 to 0.32); before, only the
    server itself can be told.
    """
    if not words:
        return False
    if _TITLE.match(words[0]):
        return True
    program = words[0].rpartition("/")[2]
    if program == "vllm":
        return "serve" in words[1:3]
    if not program.startswith(("python", "pypy")):
        return False
    return any(
        (word == "-m" and _MODULE.fullmatch(following) is not None)
        or (word.rpartition("/")[2] == "vllm" and following == "serve")
        for word, following in pairwise(words)
    ) or any(word.endswith("vllm/entrypoints/openai/api_server.py") for word in words[1:3])


def data_parallel_rank(words: Sequence[str]) -> int | None:
    """The rank in a title, as 1 of ``VLLM::EngineCore_DP1``; None if it tells none."""
    if not words or not _TITLE.match(words[0]):
        return None
    rank = _DATA_PARALLEL_RANK.search(words[0])
    return None if rank is None else int(rank[1])


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of ``--flag VALUE`` or ``--flag=VALUE``; None if it is not given."""
    found = None
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, has_value, value = word.partition("=")
        if name.startswith("-") and name.lstrip("-").replace("_", "-") == flag:
            found = value if has_value else following
    return found


def kept_words(words: Sequence[str]) -> tuple[str, ...]:
    """A command line of which every word that may be a secret has become ``***``.

    An allow-list: names of flags, numbers and switches are kept, text only where it is known to
    be none: the model, types, backends. JSON is kept item by item in the same way.

    >>> kept_words(["vllm", "serve", "m/x", "--api-key", "k", "--max-num-seqs=8"])
    ('vllm', 'serve', 'm/x', '--api-key', '***', '--max-num-seqs=8')
    """
    return tuple(_kept_words(words))


def _kept_words(words: Sequence[str]) -> Iterator[str]:
    name = "program"
    for position, word in enumerate(words):
        if position == 0 or (name == "program" and word == "serve"):
            yield _FORMS.sub(HIDDEN, word)
            name = "model" if word == "serve" else "program"
        elif _OPTIMIZATION.fullmatch(word) or (name == "program" and _PROGRAM.search(word)):
            yield word
        elif word.startswith("-") and not _NUMBER.fullmatch(word):
            name, kept = _kept_flag(word)
            yield kept
        else:
            yield _kept_value(name, word)
            if name not in _LISTS and not _SECRET_NAME.search(name):
                name = ""


def _kept_flag(word: str) -> tuple[str, str]:
    flag, has_value, value = word.partition("=")
    if not _FLAG.fullmatch(flag):
        return "", HIDDEN
    name = flag.lstrip("-").replace("_", "-")
    # --speculative-config.model X: what is said of an item is said of its name.
    name = name.rpartition(".")[2]
    return name, f"{flag}={_kept_value(name, value)}" if has_value else flag


def _kept_value(name: str, value: str) -> str:
    if _SECRET_NAME.search(name):
        return HIDDEN
    if _NUMBER.fullmatch(value):
        return value
    if value.startswith(("{", "[")):
        try:
            return json.dumps(_kept_item(name, json.loads(value)))
        except (ValueError, RecursionError):
            return HIDDEN
    assigns = "=" in value.partition("?")[0]  # as in HF_TOKEN=…
    return HIDDEN if assigns or name not in _TEXTS else _FORMS.sub(HIDDEN, value)


def _kept_item(name: str, item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _kept_item(key.replace("_", "-"), inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [_kept_item(name, inner) for inner in item]
    return _kept_value(name, item) if isinstance(item, str) or _SECRET_NAME.search(name) else item
