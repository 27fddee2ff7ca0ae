"""Memory terms that were measured at one deployment, to be used instead of estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from vllm_capacity.errors import Fault, InputError
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.units import Bytes

#: Raised when a saved profile can no longer be read as before.
SCHEMA = 1
#: What may be measured, in the order of the budget.
TERMS = (
    *("total_memory_bytes", "weights_bytes", "activation_peak_bytes"),
    *("non_torch_bytes", "cuda_graph_bytes"),
)
_KEYS = {"schema", "source", "model", "architecture", "vllm_version", "engine_args", "terms"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Measured terms of the tightest GPU of one deployment; None is what was not measured.

    Terms hold for a deployment like the measured one: compare ``model``, ``vllm_version`` and
    ``engine_args`` before use.

    Attributes:
        source: where the measurements come from, as in ``vllm.log``.
        model: as the operator named it.
        architecture: class of the model.
        vllm_version: release that was measured.
        engine_args: arguments in vLLM's names, as far as the source tells.
        total_memory_bytes: of the GPU, as CUDA reports it.
        weights_bytes: all that loading allocated.
        activation_peak_bytes: peak of the profiling run above the weights.
        non_torch_bytes: what stays beside weights: CUDA context, NCCL, workspaces.
        cuda_graph_bytes: what the release set aside for CUDA graphs where it printed that, else
            what capturing took.
    """

    source: str
    model: str | None = None
    architecture: str | None = None
    vllm_version: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    total_memory_bytes: Estimate | None = None
    weights_bytes: Estimate | None = None
    activation_peak_bytes: Estimate | None = None
    non_torch_bytes: Estimate | None = None
    cuda_graph_bytes: Estimate | None = None

    @property
    def terms(self) -> Mapping[str, Estimate]:
        """The measured terms by name."""
        return {name: term for name in TERMS if (term := getattr(self, name)) is not None}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object that ``from_json`` reads back."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "model": self.model,
            "architecture": self.architecture,
            "vllm_version": self.vllm_version,
            "engine_args": dict(self.engine_args),
            "terms": {
                name: {"bytes": t.bytes, "low": t.low, "high": t.high, "origin": t.origin}
                for name, t in self.terms.items()
            },
        }

    @classmethod
    def from_json(cls, where: str, value: object) -> Self:
        """Read a saved profile.

        Raises:
            InputError: with every fault at once.
        """
        faults: list[Fault] = []
        if not isinstance(value, Mapping):
            raise InputError(where, [Fault("profile", value, "must be a JSON object")])
        fields = Fields(value, faults=faults)
        _check_frame(fields)
        engine_args = fields.mapping("engine_args")
        terms = fields.mapping("terms")
        calibration = cls(
            source=fields.text("source") or "a saved profile",
            model=fields.text("model"),
            architecture=fields.text("architecture"),
            vllm_version=fields.text("vllm_version"),
            engine_args={} if engine_args is None else dict(engine_args.values),
            **({} if terms is None else _terms(terms)),
        )
        if faults:
            raise InputError(where, faults)
        return calibration


def _check_frame(fields: Fields) -> None:
    schema = fields.required_integer("schema")
    if schema != SCHEMA and fields.has("schema"):
        fields.fault("schema", f"must be {SCHEMA}; make the profile anew with this release")
    if not fields.has("terms"):
        fields.fault("terms", "is missing; make the profile from a start-up log")
    for key in sorted(set(fields.values) - _KEYS, key=str):
        fields.fault(key, f"is not known; known are {', '.join(sorted(_KEYS))}")


def _terms(terms: Fields) -> dict[str, Estimate]:
    for key in sorted(set(terms.values) - set(TERMS)):
        terms.fault(key, f"is not known; known are {', '.join(TERMS)}")
    named = {name: terms.mapping(name) for name in TERMS}
    return {name: _estimate(term) for name, term in named.items() if term is not None}


def _estimate(term: Fields) -> Estimate:
    size, low, high = (term.required_integer(key, minimum=0) for key in ("bytes", "low", "high"))
    if not low <= size <= high and not term.faults:
        term.fault("bytes", f"must be between low = {low} and high = {high}, in bytes")
    return Estimate(
        bytes=Bytes(size),
        low=Bytes(low),
        high=Bytes(high),
        origin=term.text("origin") or "measured",
    )
