"""Kimi's delta attention (KDA): a recurrent state behind a short convolution."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.units import round_up

_FLOAT32 = 4
#: Rows to which Kimi-K3 pads the merged input projection of a rank.
_ROW_ALIGNMENT = 16
#: The shapes of the fast kernels, in bfloat16 on Hopper and Blackwell.
#: Source: vLLM 0.32 ``models/kimi_k3/nvidia/kda.py``, ``is_flashkda_supported`` and
#: ``is_fused_kda_decode_supported``.
_FAST_HEAD_SIZE = 128
_FAST_DECODE_HEADS = frozenset({12, 24, 48, 96})
_FAST_DECODE_CONV_SIZE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaAttention(Part):
    """Kimi-Linear's recurrent layer, or Kimi-K3's with a full-rank gate.

    Source: vLLM 0.32 ``layers/mamba/gdn/kimi_gdn_linear_attn.py``, ``KimiGatedDeltaNetAttention``,
    and ``models/kimi_k3/nvidia/kda.py``, ``KimiK3DeltaAttention``.

    Attributes:
        num_heads: of the whole model.
        head_size: elements of a key, a query and a value.
        conv_size: tokens of the convolution's window.
        full_rank_gate: whether the output gate is projected at once, and not through a head.
        gate_is_bounded: whether the gate has a lower bound, as the fast prefill kernel needs.
    """

    hidden_size: int
    num_heads: int
    head_size: int
    conv_size: int
    full_rank_gate: bool = False
    gate_is_bounded: bool = False
    name: str = "self_attn"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Merged input projection, forget gate, convolution, output gate, norm and output."""
        name, heads = f"{path}.{self.name}", self.num_heads // rank.tp_size
        share = heads * self.head_size
        yield self._input_projection(name, heads)
        yield _column(f"{name}.f_b_proj", self.head_size, share)
        if not self.full_rank_gate:
            yield Linear(
                name=f"{name}.g_a_proj",
                shards=(f"{name}.g_a_proj",),
                input_size=self.hidden_size,
                output_sizes=(self.head_size,),
            )
            yield _column(f"{name}.g_b_proj", self.head_size, share)
        shards = tuple(f"{name}.{each}_conv1d" for each in "qkv")
        yield Linear(
            name=f"{name}.conv1d",
            shards=shards,
            input_size=self.conv_size,
            output_sizes=(share, share, share),
            split="column",
            quantizable=False,
            element_bytes=_FLOAT32,
        )
        yield Plain(name=f"{name}.dt_bias", elements=share + heads, element_bytes=_FLOAT32)
        yield Plain(name=f"{name}.o_norm", elements=self.head_size)
        if self._decodes_fast(heads):
            # Copies of the convolution and the norm that the fused decode kernel reads.
            copies = 3 * self.conv_size * share + self.head_size
            yield Plain(name=f"{name}.decode", elements=copies, element_bytes=_FLOAT32)
        yield Linear(
            name=f"{name}.o_proj",
            shards=(f"{name}.o_proj",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row",
        )

    def _decodes_fast(self, heads: int) -> bool:
        fits = self.head_size == _FAST_HEAD_SIZE and self.conv_size == _FAST_DECODE_CONV_SIZE
        return self.full_rank_gate and fits and heads in _FAST_DECODE_HEADS

    def _input_projection(self, name: str, heads: int) -> Linear:
        share = heads * self.head_size
        sizes: tuple[int, ...] = (share, share, share, heads, self.head_size)
        if self.full_rank_gate:
            sizes = (share, share, share, share, self.head_size, heads)
            padding = round_up(sum(sizes), _ROW_ALIGNMENT) - sum(sizes)
            sizes = (*sizes, padding) if padding else sizes
        shards = ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj")
        return Linear(
            name=f"{name}.in_proj_qkvgfab",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=sizes,
            split="column",
        )

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The convolution's window and the recurrent state of the rank's heads."""
        heads = self.num_heads // rank.tp_size
        window = State(
            shape=(self.conv_size - 1, 3 * heads * self.head_size),
            role="conv",
            grows_with_drafts=True,
        )
        carried = State(shape=(heads, self.head_size, self.head_size), role="recurrent")
        fast_prefill = self.full_rank_gate and self.gate_is_bounded
        cache = StateCache(
            kind=StateKind.KIMI_DELTA,
            states=(window, carried),
            saves_prefill_state=fast_prefill and self.head_size == _FAST_HEAD_SIZE,
        )
        yield NamedCache(f"{path}.{self.name}", cache)

    def transient(self, rank: Rank) -> Transient:
        """The merged projection, its convolved copy, gates and output, of every token."""
        share = self.num_heads // rank.tp_size * self.head_size
        return Transient("attention", 3 * share + 3 * share + 2 * share + share)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        if self.num_heads % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.num_heads} heads of linear attention are not "
            f"divisible by tensor_parallel_size {rank.tp_size}"
        )


def _column(name: str, input_size: int, output_size: int) -> Linear:
    return Linear(
        name=name,
        shards=(name,),
        input_size=input_size,
        output_sizes=(output_size,),
        split="column",
    )
