"""Dense feed-forward layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part, Transient
from vllm_capacity.predict.modules import Linear, Module
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp(Part):
    """Up and down projection, with or without a gate.

    Attributes:
        intermediate_size: width between the projections.
        gated: whether a gate multiplies the up projection.
        divided: whether tensor-parallel ranks share it; if not, each holds it whole.
        up_name, down_name: vLLM's names; a gated layer fuses gate and up.
        up_shards: the checkpoint's names of gate and up.
    """

    hidden_size: int
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    divided: bool = True
    quantizable: bool = True
    name: str = "mlp"
    up_name: str = "gate_up_proj"
    down_name: str = "down_proj"
    up_shards: tuple[str, ...] = ("gate_proj", "up_proj")

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Both projections."""
        name = f"{path}.{self.name}"
        share = self._share(rank)
        shards = self.up_shards if self.gated else self.up_shards[-1:]
        up_name = self.up_name if self.gated else self.up_shards[-1]
        yield Linear(
            name=f"{name}.{up_name}",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=(share, share) if self.gated else (share,),
            split="column" if self.divided else "none",
            bias=self.bias,
            quantizable=self.quantizable,
        )
        yield Linear(
            name=f"{name}.{self.down_name}",
            shards=(f"{name}.{self.down_name}",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row" if self.divided else "none",
            bias=self.bias,
            quantizable=self.quantizable,
        )

    def transient(self, rank: Rank) -> Transient:
        """Gate and up, their copy, and the activated product: four widths."""
        return Transient("mlp", 4 * self._share(rank))

    def refusal(self, rank: Rank) -> str | None:
        """A width that the ranks cannot share."""
        if not self.divided or self.intermediate_size % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: intermediate_size {self.intermediate_size} of {self.name} "
            f"is not divisible by TP {rank.tp_size}"
        )

    def _share(self, rank: Rank) -> int:
        return self.intermediate_size // (rank.tp_size if self.divided else 1)
