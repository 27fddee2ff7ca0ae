"""What is asked of an engine's deployment: other arguments, another workload."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict import EngineArgs
from vllm_capacity.predict.answers import WORKLOAD_SIZES, Workload, read_workload
from vllm_capacity.predict.engine_flags import BY_NAME, parsed_number, parsed_value
from vllm_capacity.predict.fields import Fields

#: What can be asked, by name: vLLM's arguments, and the sizes of a workload.
PARAMETERS = (*BY_NAME, *WORKLOAD_SIZES)

# vLLM's names of types, methods and layers; nothing that a shell or a page could take otherwise.
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")
# Every rank is predicted; more GPUs than that serve no model.
_MOST_GPUS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question.

    Attributes:
        arguments: that are to be other ones, None elsewhere.
        workload: how large requests are; None where nothing tells.
        origin: whether ``workload`` is that of the engine's finished requests or was given.
    """

    arguments: EngineArgs
    workload: Workload | None = None
    origin: Literal["observed", "given"] | None = None


def read_question(given: Mapping[str, str], engine: EngineAssessment | None) -> Question:
    """The question in parameters of these names, as text.

    Args:
        given: some of ``PARAMETERS``.
        engine: whose requests' sizes stand in where none is given; None where none is seen.

    Raises:
        EngineArgsError: with every fault of all of them.
    """
    faults: list[Fault] = []
    arguments = _arguments(given, faults)
    workload, origin = _workload(given, engine, faults)
    if faults:
        raise EngineArgsError("parameters", faults)
    return Question(arguments=arguments, workload=workload, origin=origin)


def _arguments(given: Mapping[str, str], faults: list[Fault]) -> EngineArgs:
    values = {
        name: parsed_value(text.strip(), BY_NAME[name])
        for name, text in given.items()
        if name in BY_NAME
    }
    faults += [
        Fault(name, given[name], "must be one of vLLM's names: letters, digits, . _ + -")
        for name, value in values.items()
        if BY_NAME[name].type in {str, tuple} and not _is_named(value)
    ]
    try:
        arguments = EngineArgs.from_mapping(values, source="parameters")
    except EngineArgsError as error:
        faults += error.faults
        return EngineArgs()
    gpus = (arguments.tensor_parallel_size or 1) * (arguments.pipeline_parallel_size or 1)
    if gpus > _MOST_GPUS:
        problem = f"makes {gpus} GPUs of one engine; at most {_MOST_GPUS} are predicted"
        faults.append(Fault("tensor_parallel_size", arguments.tensor_parallel_size, problem))
    return arguments


def _is_named(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return bool(names) and all(_NAME.fullmatch(name) for name in names)


def _workload(
    given: Mapping[str, str], engine: EngineAssessment | None, faults: list[Fault]
) -> tuple[Workload | None, Literal["observed", "given"] | None]:
    asked = {name: parsed_number(given[name], int) for name in WORKLOAD_SIZES if name in given}
    found: list[Fault] = []
    try:
        workload = read_workload(Fields(_observed(engine, asked) | asked, faults=found))
    except EngineArgsError as error:
        workload, found = None, list(error.faults)
    faults += found
    return workload, None if workload is None else "given" if asked else "observed"


def _observed(engine: EngineAssessment | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the engine's finished requests; a prefix that they share is within the prompt."""
    footprint = None if engine is None else engine.footprint
    if engine is None or footprint is None or footprint.prompt is None or footprint.output is None:
        return {}
    prompt = max(1, round(footprint.prompt.mean_tokens))
    longest = asked.get("mean_prompt_tokens", prompt)
    shared = round(engine.demand.shared_prompt_tokens)
    return {
        "mean_prompt_tokens": prompt,
        "mean_output_tokens": max(1, round(footprint.output.mean_tokens)),
        "shared_prefix_tokens": max(0, min(shared, longest)) if isinstance(longest, int) else 0,
    }
