"""What an engine was started with, as each source tells it, and where they disagree.

Only what was *declared* is here: arguments, and what vLLM made of them before it measured
anything. What it measured (blocks, bytes) is compared with a prediction and never part of one.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from vllm_capacity.observe.startup_args import kept_value
from vllm_capacity.observe.startup_log import StartupLog
from vllm_capacity.predict import EngineArgs
from vllm_capacity.predict.command_line import arguments_of, starts_a_server
from vllm_capacity.secrecy import HIDDEN, without_secrets

#: flag: given to us; log: the start-up log; process: the engine's command line; metrics: labels
#: of ``vllm:cache_config_info``; api: ``/v1/models``.
ArgumentSource = Literal["flag", "log", "process", "metrics", "api"]
#: The first that tells an argument is believed.
ORDER_OF_TRUST: tuple[ArgumentSource, ...] = get_args(ArgumentSource)

#: vLLM's other words for the same (0.32 ``config/model.py``; ``utils/torch_utils.py``).
_SAME = {"half": "float16", "float": "float32", "fp8_e4m3": "fp8", "fp8_ds_mla": "fp8"}
#: What leaves the choice to vLLM is denied by no choice.
_OPEN = ("auto", -1, HIDDEN)
#: Of vLLM's own summary: what it takes as given, or decides before it measures. The size of data
#: parallelism is not here: engines of dense models are told that they are alone.
_SUMMARY = (
    *("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"),
    *("enforce_eager", "enable_prefix_caching", "kv_cache_dtype"),
)
_MAX_TEXT = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What one source tells of an argument.

    Attributes:
        source: which.
        value: as text, without secrets.
        agrees: whether it may be the same as what the most trusted source tells.
    """

    source: ArgumentSource
    value: str
    agrees: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineArgument:
    """One argument that is known.

    Attributes:
        name: vLLM's, with underscores.
        told: by every source that tells it, the most trusted first; that one is in force.
    """

    name: str
    told: tuple[Told, ...]


class Denial(NamedTuple):
    """A source that contradicts the one that is believed."""

    argument: str
    source: ArgumentSource
    value: str
    denied_by: ArgumentSource
    denied_value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedWith:
    """What an engine was started with, by source.

    Attributes:
        sources: what each tells; one that tells nothing may be absent.
    """

    sources: Mapping[ArgumentSource, EngineArgs] = field(default_factory=dict)

    @property
    def engine_args(self) -> EngineArgs:
        """All that is known; of each argument what the most trusted source tells."""
        merged = EngineArgs()
        for source in reversed(ORDER_OF_TRUST):
            if source in self.sources:
                merged = self.sources[source].merged_over(merged)
        return merged

    def source_of(self, name: str) -> ArgumentSource | None:
        """The most trusted source that tells an argument."""
        told = (s for s in ORDER_OF_TRUST if name in self._given(s))
        return next(told, None)

    def arguments(self) -> tuple[EngineArgument, ...]:
        """Every argument that any source tells, by name."""
        given = {source: self._given(source) for source in ORDER_OF_TRUST}
        names = sorted({name for arguments in given.values() for name in arguments})
        return tuple(EngineArgument(name=name, told=tuple(_told(name, given))) for name in names)

    def denials(self) -> frozenset[Denial]:
        """Where sources contradict each other."""
        return frozenset(
            Denial(argument.name, believed.source, believed.value, other.source, other.value)
            for argument in self.arguments()
            for believed, other in ((argument.told[0], told) for told in argument.told)
            if not other.agrees
        )

    def _given(self, source: ArgumentSource) -> Mapping[str, Any]:
        return self.sources[source].given if source in self.sources else {}


def told_by_log(log: StartupLog) -> EngineArgs:
    """What a start-up log tells: the arguments it prints, else vLLM's own summary of them."""
    summary = {name: (log.engine_config or {}).get(name) for name in _SUMMARY}
    return EngineArgs.as_told(log.engine_args or {}).merged_over(EngineArgs.as_told(summary))


def told_by_processes(command_lines: Iterable[Sequence[str]]) -> EngineArgs | None:
    """What the command line of a server tells; None where none is among them.

    A process that gave itself a title (``VLLM::EngineCore``) tells nothing.

    Args:
        command_lines: of an engine's processes, as in ``/proc/<pid>/cmdline``, word by word;
            secrets among them are passed over.
    """
    for words in command_lines:
        if starts_a_server(words):
            arguments = arguments_of(words)
            return EngineArgs.as_told({name: kept_value(name, v) for name, v in arguments.items()})
    return None


def _told(name: str, given: Mapping[ArgumentSource, Mapping[str, Any]]) -> Iterator[Told]:
    believed: Any = None
    for source, arguments in given.items():
        value = arguments.get(name)
        if value is None:
            continue
        believed = value if believed is None else believed
        yield Told(source=source, value=_shown(name, value), agrees=_agree(believed, value))


def _agree(believed: Any, other: Any) -> bool:
    """Whether both may stand for the same."""
    if isinstance(believed, bool) or isinstance(other, bool):
        return believed is other
    if believed in _OPEN or other in _OPEN:
        return True
    if isinstance(believed, int | float) and isinstance(other, int | float):
        return math.isclose(believed, other, rel_tol=1e-9)
    if isinstance(believed, Mapping) and isinstance(other, Mapping):
        names = believed.keys() | other.keys()
        return all(_agree(believed.get(name), other.get(name)) for name in names)
    if isinstance(believed, list | tuple) and isinstance(other, list | tuple):
        return sorted(map(str, believed)) == sorted(map(str, other))
    one, two = (_SAME.get(str(value), str(value)) for value in (believed, other))
    return one == two


def _shown(name: str, value: Any) -> str:
    kept = kept_value(name, value)
    if isinstance(kept, bool | Mapping):
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    elif isinstance(kept, list):
        text = ",".join(map(str, kept))
    else:
        text = f"{kept:g}" if isinstance(kept, float) else str(kept)
    return without_secrets(text)[:_MAX_TEXT]
