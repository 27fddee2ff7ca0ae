"""State-space mixers: Mamba and Mamba-2."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaMixer(Part):
    """A selective state space with one state vector per channel. vLLM never quantises it.

    Source: vLLM 0.32 ``model_executor/layers/mamba/mamba_mixer.py``, ``MambaMixer``.

    Attributes:
        intermediate_size: channels.
        state_size: elements of a channel's state.
        conv_kernel: tokens that the convolution sees.
        time_step_rank: width between the two projections of the time step.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections into and out of the mixer have one.
        norm_weights: whether time step and states are normed with weights.
    """

    hidden_size: int
    intermediate_size: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    conv_bias: bool = True
    bias: bool = False
    norm_weights: bool = False
    name: str = "mixer"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Convolution, projections, and what governs the state."""
        name = f"{path}.{self.name}"
        channels = self.intermediate_size // rank.tp_size
        selected = self.time_step_rank + 2 * self.state_size
        yield Plain(name=f"{name}.conv1d", elements=channels * (self.conv_kernel + self.conv_bias))
        yield Plain(name=f"{name}.in_proj", elements=2 * channels * (self.hidden_size + self.bias))
        yield Plain(name=f"{name}.x_proj", elements=channels * selected)
        yield Plain(name=f"{name}.dt_proj", elements=channels * (self.time_step_rank + 1))
        yield Plain(name=f"{name}.A", elements=channels * self.state_size, element_bytes=_FLOAT32)
        yield Plain(name=f"{name}.D", elements=channels)
        bias = self.hidden_size if self.bias else 0
        yield Plain(name=f"{name}.out_proj", elements=channels * self.hidden_size + bias)
        if self.norm_weights:
            yield Plain(name=f"{name}.layernorms", elements=selected)

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The convolution's last tokens and every channel's state."""
        channels = self.intermediate_size // rank.tp_size
        states = (
            State((self.conv_kernel - 1, channels), "conv"),
            State((channels, self.state_size), "recurrent"),
        )
        yield NamedCache(f"{path}.{self.name}", StateCache(kind=StateKind.MAMBA1, states=states))

    def transient(self, rank: Rank) -> Transient:
        """Both halves of the input projection, and a contiguous copy of one."""
        return Transient("state space", 3 * self.intermediate_size // rank.tp_size)

    def refusal(self, rank: Rank) -> str | None:
        """Channels that the ranks cannot share."""
        if self.intermediate_size % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.intermediate_size} state-space channels are not "
            f"divisible by tensor_parallel_size {rank.tp_size}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mamba2Mixer(Part):
    """A state space whose heads share their input and output matrices in groups.

    A single group is held by every rank; more groups are divided over them.

    Source: vLLM 0.32 ``model_executor/layers/mamba/mamba_mixer2.py``, ``MambaMixer2``.

    Attributes:
        intermediate_size: channels of all heads.
        state_size: columns of a head's state.
        num_groups: groups of heads of the whole model.
        conv_kernel: tokens that the convolution sees.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections into and out of the mixer have one.
        norm: whether what leaves the state space is normed with weights.
        scale_vector: whether a constant scales what the input projection makes (Falcon-H1).
        path_root, first_index: where vLLM numbers mixers apart from layers, what stands before
            the number, and the number of the first layer's mixer.
    """

    hidden_size: int
    intermediate_size: int
    state_size: int
    num_groups: int
    num_heads: int
    head_size: int
    conv_kernel: int
    conv_bias: bool = True
    bias: bool = False
    norm: bool = True
    scale_vector: bool = False
    path_root: str | None = None
    first_index: int = 0
    name: str = "mixer"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Convolution, projections, and what governs the state."""
        name = self._name(path)
        heads, channels = self.num_heads // rank.tp_size, self.intermediate_size // rank.tp_size
        group = self._groups(rank) * self.state_size // rank.tp_size
        conv = channels + 2 * group
        # vLLM keeps a second view of the convolution's weights as a buffer.
        yield Plain(name=f"{name}.conv1d", elements=conv * (2 * self.conv_kernel + self.conv_bias))
        whole = self.num_groups % rank.tp_size != 0
        projected = (channels, channels, group, group, heads)
        yield Linear(
            name=f"{name}.in_proj",
            shards=(f"{name}.in_proj",),
            input_size=self.hidden_size,
            output_sizes=(sum(projected),) if whole else projected,
            split="column",
            bias=self.bias,
        )
        if self.scale_vector:
            yield Plain(name=f"{name}.mup_vector", elements=sum(projected))
        yield Plain(name=f"{name}.A", elements=heads, element_bytes=_FLOAT32)
        vectors = 2 * heads + (channels if self.norm else 0)
        yield Plain(name=f"{name}.vectors", elements=vectors)
        yield Linear(
            name=f"{name}.out_proj",
            shards=(f"{name}.out_proj",),
            input_size=channels,
            output_sizes=(self.hidden_size,),
            split="row",
            bias=self.bias,
        )

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The convolution's last tokens and every head's state."""
        heads = self.num_heads // rank.tp_size
        states = (
            State((self.conv_kernel - 1, self._conv_size(rank)), "conv", grows_with_drafts=True),
            State((heads, self.head_size, self.state_size), "recurrent"),
        )
        cache = StateCache(kind=StateKind.MAMBA2, states=states, saves_prefill_state=True)
        yield NamedCache(self._name(path), cache)

    def transient(self, rank: Rank) -> Transient:
        """What the input projection makes, the convolution's copy, and the state's output."""
        channels = self.intermediate_size // rank.tp_size
        conv = self._conv_size(rank)
        return Transient("state space", 2 * conv + 2 * channels + self.num_heads // rank.tp_size)

    def refusal(self, rank: Rank) -> str | None:
        """Heads or groups that the ranks cannot share."""
        tp = rank.tp_size
        if self.num_heads % tp or self.intermediate_size % tp:
            return (
                f"vLLM refuses to start: {self.num_heads} Mamba-2 heads of "
                f"{self.intermediate_size} channels are not divisible by tensor_parallel_size {tp}"
            )
        if self.num_groups % tp == 0:
            return None
        if self.num_groups != 1:
            return (
                f"vLLM refuses to start: {self.num_groups} Mamba-2 groups are not divisible by "
                f"tensor_parallel_size {tp}"
            )
        if not self.conv_bias:
            return "vLLM refuses to start: it divides one Mamba-2 group only with a conv bias"
        return None

    def _groups(self, rank: Rank) -> int:
        """Source: vLLM 0.32 ``mamba_utils.py``, ``extra_groups_for_head_shards``."""
        tp = rank.tp_size
        return self.num_groups if self.num_groups % tp == 0 else tp

    def _conv_size(self, rank: Rank) -> int:
        channels = self.intermediate_size + 2 * self._groups(rank) * self.state_size
        return channels // rank.tp_size

    def _name(self, path: str) -> str:
        if self.path_root is None:
            return f"{path}.{self.name}"
        index = self.first_index + int(path.rpartition(".")[2])
        return f"{self.path_root}.{index}.{self.name}".lstrip(".")
