"""One linear layer on its own."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part
from vllm_capacity.predict.modules import Linear, Module
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection(Part):
    """A matrix that the ranks share by columns or rows, or each hold whole.

    Attributes:
        split: which side tensor parallelism divides: ``column``, ``row`` or ``none``.
        element_bytes: width of an unquantised element where it is not the model's dtype.
    """

    name: str
    input_size: int
    output_size: int
    split: str = "none"
    bias: bool = False
    quantizable: bool = True
    element_bytes: int | None = None

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The rank's share."""
        name = f"{path}.{self.name}"
        yield Linear(
            name=name,
            shards=(name,),
            input_size=self.input_size // (rank.tp_size if self.split == "row" else 1),
            output_sizes=(self.output_size // (rank.tp_size if self.split == "column" else 1),),
            split=self.split,
            bias=self.bias,
            quantizable=self.quantizable,
            element_bytes=self.element_bytes,
        )

    def refusal(self, rank: Rank) -> str | None:
        """A side that the ranks cannot share."""
        divided = {"column": self.output_size, "row": self.input_size}.get(self.split, 0)
        if divided % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.name} of width {divided} is not divisible by "
            f"TP {rank.tp_size}"
        )
