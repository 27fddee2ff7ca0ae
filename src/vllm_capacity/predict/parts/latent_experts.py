"""Kimi's experts, which may work on narrower hidden states."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from vllm_capacity.predict.model import Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.parts.experts import SparseMoe


@dataclass(frozen=True, kw_only=True, slots=True)
class NarrowedMoe(Part):
    """A mixture of experts whose experts see a projection of the hidden states.

    Source: vLLM 0.32 ``models/kimi_k3/nvidia/model.py``, ``KimiMoE``.

    Attributes:
        experts: the mixture; its ``routed_hidden_size`` is None where nothing is narrowed.
        normed: whether what the experts make is normed before it is widened.
        minimum_share: width to which an expert's share of a tensor-parallel rank is padded.
    """

    is_sparse: ClassVar[bool] = True

    experts: SparseMoe
    normed: bool
    minimum_share: int

    def _padded(self, rank: Rank) -> SparseMoe:
        tp, width = rank.tp_size, self.experts.intermediate_size
        if tp == 1 or rank.expert_parallel > 1 or width // tp >= self.minimum_share:
            return self.experts
        return replace(self.experts, intermediate_size=self.minimum_share * tp)

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The mixture, and whole projections down and up."""
        yield from self._padded(rank).modules(rank, path)
        narrow, name = self.experts.routed_hidden_size, f"{path}.{self.experts.name}"
        if narrow is None:
            return
        hidden = self.experts.hidden_size
        yield _whole(f"{name}.routed_expert_down_proj", hidden, narrow)
        yield _whole(f"{name}.routed_expert_up_proj", narrow, hidden)
        if self.normed:
            yield Plain(name=f"{name}.routed_expert_norm", elements=narrow)

    def transient(self, rank: Rank) -> Transient:
        """The mixture's."""
        return self._padded(rank).transient(rank)

    def refusal(self, rank: Rank) -> str | None:
        """The mixture's."""
        return self._padded(rank).refusal(rank)


def _whole(name: str, input_size: int, output_size: int) -> Linear:
    return Linear(name=name, shards=(name,), input_size=input_size, output_sizes=(output_size,))
