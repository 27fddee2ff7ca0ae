"""Gated delta networks: linear attention that corrects what it remembers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaNet(Part):
    """A gated delta network with its convolution.

    Source: vLLM 0.32 ``model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py``,
    ``QwenGatedDeltaNetAttention``, and ``olmo_gdn_linear_attn.py``.

    Attributes:
        conv_kernel: tokens that the convolution sees.
        layout: how the checkpoint's projections are fused: ``interleaved``, as one matrix
            (Qwen3-Next); ``flat``, from separate ones (Qwen3.5); ``separate``, with the scalars
            of the gates apart (OLMo-Hybrid).
        float32_decay: whether the decay of every head is float32.
        norm_element_bytes: width of the norm's weights where it is not the model's dtype.
    """

    hidden_size: int
    num_key_heads: int
    num_value_heads: int
    key_head_size: int
    value_head_size: int
    conv_kernel: int
    layout: str = "flat"
    float32_decay: bool = True
    norm_element_bytes: int | None = None
    name: str = "linear_attn"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Convolution, projections, gates and norm."""
        name = f"{path}.{self.name}"
        heads = self.num_value_heads // rank.tp_size
        key, value = self._sizes(rank)
        yield Plain(name=f"{name}.conv1d", elements=(2 * key + value) * self.conv_kernel)
        yield from self._projections(name, key=key, value=value, heads=heads)
        yield Plain(name=f"{name}.dt_bias", elements=heads)
        width = _FLOAT32 if self.float32_decay else None
        yield Plain(name=f"{name}.A_log", elements=heads, element_bytes=width)
        yield Plain(
            name=f"{name}.norm",
            elements=self.value_head_size,
            element_bytes=self.norm_element_bytes,
        )
        out = "o_proj" if self.layout == "separate" else "out_proj"
        yield Linear(
            name=f"{name}.{out}",
            shards=(f"{name}.{out}",),
            input_size=value,
            output_sizes=(self.hidden_size,),
            split="row",
        )

    def _projections(self, name: str, *, key: int, value: int, heads: int) -> Iterator[Linear]:
        whole, scalars = (key, key, value, value), (heads, heads)
        if self.layout == "interleaved":
            yield self._column(name, "in_proj_qkvz", ("in_proj_qkvz",), (sum(whole),))
            yield self._column(name, "in_proj_ba", ("in_proj_ba",), (sum(scalars),))
        elif self.layout == "flat":
            yield self._column(name, "in_proj_qkvz", ("in_proj_qkv", "in_proj_z"), whole)
            column = self._column(name, "in_proj_ba", ("in_proj_b", "in_proj_a"), scalars)
            yield replace(column, packed_output_sizes=(self.num_value_heads,) * 2)
        else:
            shards = ("q_proj", "k_proj", "v_proj", "g_proj")
            yield self._column(name, "in_proj_qkvg", shards, whole)
            yield self._column(name, "b_proj", ("b_proj",), (heads,))
            yield self._column(name, "a_proj", ("a_proj",), (heads,))

    def _column(
        self, name: str, own: str, shards: tuple[str, ...], sizes: tuple[int, ...]
    ) -> Linear:
        return Linear(
            name=f"{name}.{own}",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=sizes,
            split="column",
        )

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The convolution's last tokens and every head's memory."""
        key, value = self._sizes(rank)
        heads = self.num_value_heads // rank.tp_size
        states = (
            State((self.conv_kernel - 1, 2 * key + value), "conv", grows_with_drafts=True),
            State((heads, self.value_head_size, self.key_head_size), "recurrent"),
        )
        cache = StateCache(kind=StateKind.GATED_DELTA_NET, states=states)
        yield NamedCache(f"{path}.{self.name}", cache)

    def transient(self, rank: Rank) -> Transient:
        """Projections, the convolution's copy, the memory's output and its normed copy."""
        key, value = self._sizes(rank)
        scalars = 2 * self.num_value_heads // rank.tp_size
        return Transient("delta net", 4 * key + 5 * value + scalars)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        tp = rank.tp_size
        if self.num_key_heads % tp == 0 and self.num_value_heads % tp == 0:
            return None
        return (
            f"vLLM refuses to start: {self.num_key_heads} key and {self.num_value_heads} value "
            f"heads of the delta net are not divisible by tensor_parallel_size {tp}"
        )

    def _sizes(self, rank: Rank) -> tuple[int, int]:
        key = self.num_key_heads * self.key_head_size // rank.tp_size
        return key, self.num_value_heads * self.value_head_size // rank.tp_size
