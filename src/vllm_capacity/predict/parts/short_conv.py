"""Gated short convolutions."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortConv(Part):
    """A convolution over a few tokens between two gates.

    Source: vLLM 0.32 ``model_executor/layers/mamba/short_conv.py``, ``ShortConv``.

    Attributes:
        size: channels, which are also the width of what enters and leaves.
        conv_kernel: tokens that the convolution sees.
        bias: whether convolution and projections have biases.
    """

    size: int
    conv_kernel: int
    bias: bool = False
    name: str = "short_conv"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Convolution and projections."""
        name, share = f"{path}.{self.name}", self.size // rank.tp_size
        yield Plain(name=f"{name}.conv", elements=share * (self.conv_kernel + self.bias))
        yield Linear(
            name=f"{name}.in_proj",
            shards=(f"{name}.in_proj",),
            input_size=self.size,
            output_sizes=(share,) * 3,
            split="column",
            bias=self.bias,
        )
        yield Linear(
            name=f"{name}.out_proj",
            shards=(f"{name}.out_proj",),
            input_size=share,
            output_sizes=(self.size,),
            split="row",
            bias=self.bias,
        )

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The convolution's last tokens."""
        shape = (self.conv_kernel - 1, self.size // rank.tp_size)
        states = (State(shape, "conv", grows_with_drafts=True),)
        yield NamedCache(
            f"{path}.{self.name}", StateCache(kind=StateKind.SHORT_CONV, states=states)
        )

    def transient(self, rank: Rank) -> Transient:
        """Three projections, the gated input and the gated output."""
        return Transient("short convolution", 5 * self.size // rank.tp_size)

    def refusal(self, rank: Rank) -> str | None:
        """Channels that the ranks cannot share."""
        if self.size % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.size} channels of the short convolution are not "
            f"divisible by tensor_parallel_size {rank.tp_size}"
        )
