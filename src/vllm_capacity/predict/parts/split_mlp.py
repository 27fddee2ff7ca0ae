"""A gated MLP whose gate and up projection are not fused."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.modules import Module
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.parts.feed_forward import Mlp
from vllm_capacity.predict.parts.projection import Projection


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitMlp(Mlp):
    """Gate, up and down projection on their own; quantisation scales each by itself.

    Source: vLLM 0.32 ``model_executor/models/laguna.py``, ``LagunaMLP``.
    """

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """All three projections."""
        hidden, inner = self.hidden_size, self.intermediate_size
        for name in self.up_shards:
            up = Projection(name=name, input_size=hidden, output_size=inner, split="column")
            yield from up.modules(rank, f"{path}.{self.name}")
        down = Projection(name=self.down_name, input_size=inner, output_size=hidden, split="row")
        yield from down.modules(rank, f"{path}.{self.name}")
