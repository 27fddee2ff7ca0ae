"""Answers around a prediction: for a workload, for a number of users, and for other arguments."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict import Deployment, Prediction, predict
from vllm_capacity.predict.answers import (
    Alternative,
    Layout,
    SharedPrefix,
    Workload,
    WorkloadCapacity,
    alternatives,
    fewest_gpus,
    longest_context,
    predicted_failure,
    read_workload,
    shared_prefix,
    workload_capacity,
)
from vllm_capacity.predict.fields import Fields
from vllm_capacity.units import format_gib

#: Flag and key of each size of a workload, and what it means.
WORKLOAD_FLAGS = (
    ("mean_prompt_tokens", "tokens of a prompt, on average"),
    ("mean_output_tokens", "tokens that a request generates, on average"),
    ("p95_prompt_tokens", "tokens that 95 %% of the prompts do not exceed"),
    ("p95_output_tokens", "tokens that 95 %% of the outputs do not exceed"),
    ("shared_prefix_tokens", "leading tokens that all prompts have in common"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked beside the prediction.

    Attributes:
        workload: None where no request sizes were given.
        users: requests that must run at once, None where not asked.
    """

    workload: Workload | None
    users: int | None


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that describe a workload."""
    group = parser.add_argument_group("the workload, for how many requests fit")
    for name, text in WORKLOAD_FLAGS:
        dashed = f"--{name.replace('_', '-')}"
        group.add_argument(dashed, metavar="TOKENS", type=int, help=text)
    group.add_argument(
        "--users",
        metavar="N",
        type=int,
        help="requests that must run at once: how many GPUs are needed",
    )


def question_of(args: argparse.Namespace) -> Question:
    """The question that the flags ask.

    Raises:
        EngineArgsError: with every fault of the workload.
    """
    names = (*(name for name, _ in WORKLOAD_FLAGS), "users")
    faults: list[Fault] = []
    question = read_question(Fields({name: getattr(args, name) for name in names}, faults=faults))
    if faults:
        raise EngineArgsError("flags", faults)
    return question


def read_question(fields: Fields) -> Question:
    """The question in an object with the workload's keys and ``users``.

    Raises:
        EngineArgsError: the workload cannot be; what is missing goes to ``fields.faults``.
    """
    users = fields.integer("users", maximum=1 << 30)
    workload = read_workload(fields, is_needed=users is not None)
    return Question(workload=workload, users=None if workload is None else users)


def answers(deployment: Deployment, question: Question) -> dict[str, Any]:
    """The answers as JSON values."""
    found = _answers(deployment, question)
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _answers(deployment: Deployment, question: Question) -> Mapping[str, Any]:
    prediction, workload = predict(deployment), question.workload
    plan = prediction.plans[0] if prediction.plans else None
    found: dict[str, Any] = {
        "failure": predicted_failure(deployment),
        "longest_context_tokens": longest_context(deployment),
        "what_if": alternatives(deployment, workload),
    }
    if workload is not None and plan is not None and prediction.resolved is not None:
        seqs = prediction.resolved.max_num_seqs
        found["workload"] = workload_capacity(plan, workload, max_num_seqs=seqs)
        found["shared_prefix"] = shared_prefix(plan, workload, max_num_seqs=seqs)
        if question.users is not None:
            found["fewest_gpus"] = fewest_gpus(deployment, workload, question.users)
    return found


def render_answers(
    deployment: Deployment, prediction: Prediction, question: Question
) -> Iterator[str]:
    """The answers in lines of text."""
    found = _answers(deployment, question)
    if found["longest_context_tokens"] is not None and prediction.plans[0].error is None:
        yield f"  {found['longest_context_tokens']} tokens: the longest context that would fit"
    for capacity in found.get("workload", ()):
        yield _capacity(capacity)
    if found.get("shared_prefix") is not None:
        yield _prefix(found["shared_prefix"])
    if found["failure"] is not None:
        yield from _failure(found["failure"].remedies)
    if found["what_if"]:
        yield from _what_if(found["what_if"])
    if "fewest_gpus" in found:
        yield from _layouts(found["fewest_gpus"], question.users or 0)


def _capacity(capacity: WorkloadCapacity) -> str:
    return (
        f"  {capacity.requests} requests of {capacity.tokens} tokens ({capacity.basis}) at once, "
        f"{capacity.blocks} blocks each; {capacity.binding_limit} binds"
    )


def _prefix(prefix: SharedPrefix) -> str:
    return (
        f"  the shared prefix fills {prefix.blocks} blocks ({format_gib(prefix.bytes_per_gpu)} a "
        f"GPU) once instead of for every request: saves {format_gib(prefix.saved_bytes_per_gpu)}, "
        f"{prefix.more_requests} more requests"
    )


def _failure(remedies: tuple[str, ...]) -> Iterator[str]:
    yield "\nwhat would let it start"
    for remedy in remedies:
        yield f"  {remedy}"
    if not remedies:
        yield "  a smaller or quantised model: none of the arguments tried makes it fit"


def _what_if(found: tuple[Alternative, ...]) -> Iterator[str]:
    yield "\nwhat if                              blocks    requests at once   price"
    for each in found:
        blocks = "" if each.num_blocks is None else str(each.num_blocks)
        requests = "does not start"
        if each.starts and each.requests is not None:
            gained = each.gained_requests or 0.0
            requests = f"{each.requests:.1f} ({gained:+.1f})"
        price = each.price if each.starts else (each.reason or "")
        yield f"  {each.flags:<34}{blocks:>8}   {requests:<18} {price}"


def _layouts(layouts: tuple[Layout, ...], users: int) -> Iterator[str]:
    yield f"\nGPUs for {users} requests of the mean size at once"
    for layout in layouts:
        shape = f"TP {layout.tensor_parallel_size}"
        if layout.pipeline_parallel_size > 1:
            shape += f", PP {layout.pipeline_parallel_size}"
        if layout.gpus is None:
            yield f"  {shape}: {layout.reason}"
        else:
            yield (
                f"  {layout.gpus} GPUs: {layout.replicas} × ({shape}), "
                f"{layout.requests} requests each"
            )
