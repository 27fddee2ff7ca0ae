"""Metrics of what an engine was started with."""

from vllm_capacity.compare.fleet import TargetAssessment
from vllm_capacity.export.metric import PREFIX, Metric, Values


def _info(target: TargetAssessment) -> Values:
    return {
        (argument.name, told.value, told.source): 1.0
        for argument in target.started_with.arguments()
        for told in argument.told
    }


def _conflict(target: TargetAssessment) -> Values:
    return {
        (argument.name, believed.source, other.source): float(not other.agrees)
        for argument in target.started_with.arguments()
        for believed, *others in (argument.told,)
        for other in others
    }


ARGUMENTS = (
    Metric(
        PREFIX + "engine_argument_info",
        "An argument of vLLM's that moves memory, as a source tells it; the value is 1.",
        "flags, start-up log, command line of the process, vllm:cache_config_info, /v1/models",
        ("argument", "value", "source"),
        "target",
        _info,
    ),
    Metric(
        PREFIX + "engine_argument_conflict",
        "1 if another source contradicts the one that is believed, 0 if it agrees.",
        "the same sources against each other",
        ("argument", "source", "other"),
        "target",
        _conflict,
    ),
)
