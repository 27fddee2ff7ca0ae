"""Which modules a checkpoint's quantisation config speaks of.

A fused layer is looked up by its own name and by those of the checkpoint's layers in it; where
these differ in their quantisation vLLM refuses to start.
"""

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from vllm_capacity.predict.modules import Linear, RoutedExperts
from vllm_capacity.predict.quantization.scheme import Refused

Matches = Callable[[str], bool]
#: A whole layer number in a name or a pattern.
_LAYER_NUMBER = re.compile(r"(?:layers?|blocks?|h)\\?\.(\d+)(?=\\?\.|$)")
_PATTERN = re.compile(r"^re:|[*?\[]")
_ANY_NUMBER = re.compile(r"(?<![A-Za-z_])\d")


class MixedShardsError(ValueError):
    """Some but not all parts of a fused layer are quantised alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Renaming:
    """How a model class renames the checkpoint's modules; quantisation configs are renamed too.

    Attributes:
        substrings, prefixes, suffixes: old and new text, applied in this order; None drops the
            name.

    Source: vLLM 0.32 ``model_executor/models/utils.py``, ``WeightsMapper``.
    """

    substrings: tuple[tuple[str, str | None], ...] = ()
    prefixes: tuple[tuple[str, str | None], ...] = ()
    suffixes: tuple[tuple[str, str | None], ...] = ()

    def apply(self, name: str) -> str | None:
        """The name in vLLM, None where it has none."""
        renamed: str | None = name
        for old, new in self.substrings:
            renamed = _renamed(renamed, old, new, found=renamed is not None and old in renamed)
        for old, new in self.prefixes:
            found = renamed is not None and renamed.startswith(old)
            renamed = _renamed(renamed, old, new, found=found)
        for old, new in self.suffixes:
            if renamed is not None and renamed.endswith(old):
                renamed = None if new is None else renamed[: len(renamed) - len(old)] + new
        return renamed

    def apply_all(self, names: Iterable[str]) -> tuple[str, ...]:
        """All names that vLLM keeps."""
        return tuple(new for name in names if (new := self.apply(name)) is not None)


def _renamed(name: str | None, old: str, new: str | None, *, found: bool) -> str | None:
    if name is None or not found:
        return name
    return None if new is None else name.replace(old, new, 1)


def shards_of(module: Linear | RoutedExperts) -> tuple[str, ...]:
    """The checkpoint's names of what is fused into a module, none where nothing is."""
    if isinstance(module, RoutedExperts) or module.shards == (module.name,):
        return ()
    return module.shards


def matches(module: Linear | RoutedExperts, one: Matches) -> bool:
    """Whether a module itself, or every part of it, is meant.

    Raises:
        MixedShardsError: some parts are and some are not.
    """
    shards = shards_of(module)
    if not shards or one(module.name):
        return one(module.name)
    meant = {one(shard) for shard in shards}
    if len(meant) > 1:
        raise MixedShardsError(module.name)
    return meant.pop()


def mixed(module: Linear | RoutedExperts) -> Refused:
    """The verdict on a fused layer whose parts differ."""
    return Refused(f"vLLM refuses to start: parts of {module.name} are quantised differently")


def skipped(
    module: Linear | RoutedExperts, listed: frozenset[str], *, by_substring: bool = False
) -> bool:
    """Whether a list of names leaves a module in the model's dtype.

    Raises:
        MixedShardsError: some parts of a fused layer are left, some are not.

    Source: vLLM 0.32 ``layers/quantization/utils/quant_utils.py``, ``is_layer_skipped``.
    """
    if by_substring:
        return matches(module, lambda name: any(entry in name for entry in listed))
    if not shards_of(module) and "experts" in module.name:
        return any(module.name in entry for entry in listed if "experts" in entry)
    return matches(module, lambda name: name in listed)


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def is_pattern(text: str) -> bool:
    """Whether a text can be read as a regular expression."""
    try:
        _pattern(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def found_at_start(pattern: str, name: str) -> bool:
    """Whether a regular expression matches the beginning of a name."""
    return _pattern(pattern).match(name) is not None


def found_anywhere(pattern: str, name: str) -> bool:
    """Whether a regular expression matches somewhere in a name."""
    return _pattern(pattern).search(name) is not None


def equal_or_pattern(entry: str, name: str) -> bool:
    """Whether an entry is a name, or a ``re:`` pattern of its beginning.

    Source: vLLM 0.32 ``quantization/utils/config_utils.py``, ``is_equal_or_regex_match``.
    """
    if entry.startswith("re:"):
        return found_at_start(entry[3:], name)
    return entry == name


def like_shell(entry: str, name: str) -> bool:
    """Whether a shell-style pattern matches the whole of a name."""
    return fnmatchcase(name, entry)


class LayerMentions:
    """Which layers the entries of a quantisation tell from others.

    Args:
        entries: names and patterns.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        mentioned: dict[int, set[str]] = {}
        self._odd = False
        for entry in entries:
            found = _LAYER_NUMBER.search(entry)
            if found is not None:
                rest = f"{entry[: found.start(1)]}#{entry[found.end(1) :]}"
                mentioned.setdefault(int(found[1]), set()).add(rest)
            elif _may_tell_layers(entry):
                self._odd = True
        self._mentioned = {number: frozenset(rest) for number, rest in mentioned.items()}

    def of(self, path: str) -> Hashable:
        """Equal for layers that no entry tells apart; ``path`` is the layer's."""
        number = path.rpartition(".")[2]
        if self._odd or not number.isdecimal():
            return path
        return self._mentioned.get(int(number))


def _may_tell_layers(entry: str) -> bool:
    """Whether an entry without a whole layer number may still hold for some layers only."""
    if entry[:1].isdigit() or entry.startswith("."):
        return True
    return _PATTERN.search(entry) is not None and _ANY_NUMBER.search(entry) is not None


@lru_cache(maxsize=16)
def layer_mentions(entries: frozenset[str]) -> LayerMentions:
    """The mentions of a quantisation's entries."""
    return LayerMentions(entries)
