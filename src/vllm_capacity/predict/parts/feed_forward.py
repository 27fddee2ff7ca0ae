"""Dense feed-forward layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part, Transient
from vllm_capacity.predict.modules import Linear, Module
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.units import ceil_div


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp(Part):
    """Up and down projection, with or without a gate.

    Attributes:
        intermediate_size: width between the projections.
        gated: whether a gate multiplies the up projection.
        divided: whether tensor-parallel ranks share it; if not, each holds it whole.
        token_parallel: whether ranks that share tokens hold it whole (``Rank.shares_tokens``);
            None where that was not compared with vLLM's.
        token_parallel_stages: whether they do so with pipeline stages too.
        block_rows: rows of which every rank gets whole blocks; the width is padded to them.
        up_name, down_name: vLLM's names; a gated layer fuses gate and up.
        up_shards: the checkpoint's names of gate and up.
        fused: whether gate and up are one matrix in the checkpoint too, with one scale.
    """

    hidden_size: int
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    divided: bool = True
    token_parallel: bool | None = None
    fused: bool = False
    token_parallel_stages: bool = True
    block_rows: int | None = None
    quantizable: bool = True
    name: str = "mlp"
    up_name: str = "gate_up_proj"
    down_name: str = "down_proj"
    up_shards: tuple[str, ...] = ("gate_proj", "up_proj")

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Both projections."""
        name = f"{path}.{self.name}".rstrip(".")
        share = self._share(rank)
        shards = self.up_shards if self.gated else self.up_shards[-1:]
        up_name = self.up_name if self.gated else self.up_shards[-1]
        yield Linear(
            name=f"{name}.{up_name}",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=self._fused((share, share) if self.gated else (share,)),
            split="column" if self._is_divided(rank) else "none",
            bias=self.bias,
            quantizable=self.quantizable,
        )
        yield Linear(
            name=f"{name}.{self.down_name}",
            shards=(f"{name}.{self.down_name}",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row" if self._is_divided(rank) else "none",
            bias=self.bias,
            quantizable=self.quantizable,
        )

    def transient(self, rank: Rank) -> Transient:
        """Gate, up and the activated product: three widths; two without a gate.

        Source: vLLM 0.19 ``models/llama.py``, ``LlamaMLP``, compiled: one kernel activates.
        """
        return Transient("mlp", (3 if self.gated else 2) * self._share(rank))

    def refusal(self, rank: Rank) -> str | None:
        """A width that the ranks cannot share."""
        if not self._is_divided(rank) or self.block_rows is not None:
            return None
        if self.intermediate_size % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: intermediate_size {self.intermediate_size} of {self.name} "
            f"is not divisible by TP {rank.tp_size}"
        )

    def _fused(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (sum(sizes),) if self.fused else sizes

    def _share(self, rank: Rank) -> int:
        if not self._is_divided(rank):
            return self.intermediate_size
        if self.block_rows is not None:
            blocks = self.intermediate_size // self.block_rows
            return ceil_div(blocks, rank.tp_size) * self.block_rows
        return self.intermediate_size // rank.tp_size

    def _is_divided(self, rank: Rank) -> bool:
        by_tokens = bool(self.token_parallel) and rank.shares_tokens
        stages_too = self.token_parallel_stages or rank.pp_size == 1
        return self.divided and not (by_tokens and stages_too)
