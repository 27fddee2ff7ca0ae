"""Projections that stand alone in a layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part
from vllm_capacity.predict.modules import Linear, Module
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicated(Part):
    """A linear layer that every rank holds whole.

    Source: vLLM 0.32 ``model_executor/layers/linear.py``, ``ReplicatedLinear``.
    """

    name: str
    input_size: int
    output_size: int
    bias: bool = False

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The layer."""
        del rank
        name = f"{path}.{self.name}"
        yield Linear(
            name=name,
            shards=(name,),
            input_size=self.input_size,
            output_sizes=(self.output_size,),
            bias=self.bias,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered(Part):
    """A linear layer whose rows the ranks divide and whose output they gather.

    Source: vLLM 0.32 ``model_executor/layers/linear.py``, ``ColumnParallelLinear``.

    Attributes:
        kept_from: quantisations that vLLM keeps from it.
    """

    name: str
    input_size: int
    output_size: int
    kept_from: frozenset[str] = frozenset()

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The rank's rows."""
        name = f"{path}.{self.name}"
        yield Linear(
            name=name,
            shards=(name,),
            input_size=self.input_size,
            output_sizes=(self.output_size // rank.tp_size,),
            split="column",
            kept_from=self.kept_from,
        )

    def refusal(self, rank: Rank) -> str | None:
        """Rows that do not divide."""
        if self.output_size % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.output_size} rows of {self.name} are not divisible by "
            f"tensor_parallel_size {rank.tp_size}"
        )
