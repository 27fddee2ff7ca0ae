"""The peak of activation memory in the profiling run: the largest of named phases.

vLLM profiles the encoder of a multimodal model, then one full batch, then one sampler run over
``max_num_seqs`` rows of logits. Sizes follow from the operations; ``docs/method.md`` shows them
against measured start-ups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vllm_capacity.predict.memory.encoder import Encoded, encoded
from vllm_capacity.predict.memory.loaded_weights import keeps_no_workspace
from vllm_capacity.predict.memory.samplers import Sampler
from vllm_capacity.predict.memory.weights import StageModel, Widths, layer_modules
from vllm_capacity.predict.model import Transient
from vllm_capacity.predict.modules import Linear
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.quantization.packed import Integer8
from vllm_capacity.predict.quantization.scheme import Quantization
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import MIB, Bytes

#: A release that sorts, of the time when start-ups that sort were published.
SORTING_RELEASE = VllmVersion(0, 11)
#: First release seen whose MoE workspace outlives the layers that use it.
_MOE_WORKSPACE_STAYS = VllmVersion(0, 13)
_PHASE_ORIGINS = {
    "mlp": "gate, up and activated product of one layer",
    "experts": "workspaces of the fused experts",
    "encoder": "the widest layer of the profiled encoder",
}
#: How far measured peaks lie from the law: residuals of the start-ups in docs/method.md.
_LAW_ERROR_RATIO = 0.03
_LAW_ERROR_BYTES = 96 * MIB


class _Chip(NamedTuple):
    """What of a GPU counts beside its memory.

    Attributes:
        multiprocessors: of its largest product.
        cache_bytes: second-level cache, which PyTorch's autotuner clears with a buffer as large.
        cublas_bytes: cuBLAS workspace.
    """

    multiprocessors: int
    cache_bytes: int
    cublas_bytes: int = 8 * MIB


_HOPPER = _Chip(132, 50 * MIB, 32 * MIB)
#: By compute capability, as NVIDIA publishes them; only Hopper's were checked against start-ups.
#: cuBLAS: PyTorch
#: ``aten/src/ATen/cuda/CUDABlas.cpp``, ``_parseChosenWorkspaceSize``.
_CHIPS = {
    (7, 5): _Chip(72, 6 * MIB),
    (8, 0): _Chip(108, 40 * MIB),
    (8, 6): _Chip(84, 6 * MIB),
    (8, 9): _Chip(142, 96 * MIB),
    (9, 0): _HOPPER,
    (10, 0): _Chip(148, 126 * MIB, 32 * MIB),
    (10, 3): _Chip(148, 126 * MIB, 32 * MIB),
    (12, 0): _Chip(188, 128 * MIB, 12 * MIB),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One candidate for the peak.

    Attributes:
        name: ``sampler``, ``mlp``, ``experts``, ``attention`` …
        bytes: what it holds at once.
        origin: how the number was obtained.
    """

    name: str
    bytes: Bytes
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationPeak:
    """The largest phase, and bounds.

    Attributes:
        phases: all candidates, largest first.
    """

    bytes: Bytes
    low: Bytes
    high: Bytes
    phases: tuple[Phase, ...]

    @property
    def phase(self) -> Phase:
        """The phase that makes the peak."""
        return self.phases[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The batch that is profiled.

    Attributes:
        max_model_len, block_size: they bound the context that latent attention expands at once.
        compiled: whether the model is compiled.
        data_parallel: replicas whose tokens the experts see.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int = 0
    block_size: int = 16
    compiled: bool = True
    data_parallel: int = 1

    @property
    def context_tokens(self) -> int:
        """Tokens of the context that latent attention expands at a time.

        Source: vLLM 0.19 ``layers/attention/mla_attention.py``,
        ``determine_chunked_prefill_workspace_size``.
        """
        pages = self.max_num_seqs * self.block_size
        return max(min(max(8 * self.max_model_len, 4 * pages), 64 * 1024), pages)


def activation_peak(
    stage: StageModel,
    rank: Rank,
    *,
    batch: Batch,
    sampler: Sampler,
    version: VllmVersion,
    widths: Widths,
) -> ActivationPeak:
    """The peak on one rank."""
    run = _Run(stage, rank, batch, version, widths)
    phases = list(run.forward_phases())
    lows = highs = [phase.bytes for phase in phases]
    if rank.is_last_stage:
        phases.append(run.sampler_phase(sampler))
        others = [run.sampler_phase(each).bytes for each in (sampler, *sampler.alternatives)]
        lows, highs = [*lows, min(others)], [*highs, max(others)]
    phases.sort(key=lambda phase: phase.bytes, reverse=True)
    return ActivationPeak(
        bytes=phases[0].bytes,
        low=Bytes(max(0, max(lows) - _slack(max(lows)))),
        high=Bytes(max(highs) + _slack(max(highs))),
        phases=tuple(phases),
    )


def _slack(size: int) -> int:
    return round(size * _LAW_ERROR_RATIO) + _LAW_ERROR_BYTES


class _Run:
    """The profiling run of one rank."""

    def __init__(
        self, stage: StageModel, rank: Rank, batch: Batch, version: VllmVersion, widths: Widths
    ) -> None:
        self.stage, self.rank, self.batch, self.widths = stage, rank, batch, widths
        self.chip = _CHIPS.get(widths.capability or (9, 0), _HOPPER)
        self.per_element = widths.element_bytes * batch.max_num_batched_tokens
        self.hidden = self.per_element * stage.model.hidden_size
        self.transients = list(self._transients())
        self.rounds_inputs = self._rounds_inputs()
        self.encoded = self._encoded(version)
        self.kept = self.encoded.kept_bytes + self.per_element * stage.model.batch_elements
        self.workspace = self._workspace() if version >= _MOE_WORKSPACE_STAYS else 0

    def forward_phases(self) -> Iterator[Phase]:
        """The encoder, and the widest part of the profiled batch."""
        if self.encoded.peak_bytes:
            size = Bytes(self.encoded.peak_bytes + self.chip.cublas_bytes)
            yield Phase(name="encoder", bytes=size, origin=_PHASE_ORIGINS["encoder"])
        if not self.transients:
            size = Bytes(self._around())
            yield Phase(name="hidden states", bytes=size, origin="hidden states of the batch")
            return
        widest = max(self.transients, key=self._transient_bytes)
        yield Phase(
            name=widest.phase,
            bytes=Bytes(self._transient_bytes(widest) + self._around()),
            origin=_PHASE_ORIGINS.get(widest.phase, "operations of the widest layer"),
        )

    def sampler_phase(self, sampler: Sampler) -> Phase:
        """Logits, the batch's hidden states, the sampled rows and their random copy."""
        batch, model = self.batch, self.stage.model
        logits = sampler.logits_bytes(
            max_num_seqs=batch.max_num_seqs,
            vocab_size=model.vocab_size,
            element_bytes=self.widths.element_bytes,
            multiprocessors=self.chip.multiprocessors,
        )
        rows = 2 * self.widths.element_bytes * batch.max_num_seqs * model.hidden_size
        # A stage receives hidden states and residual besides its own.
        passed_on = 2 * self.hidden if self.rank.pp_size > 1 else 0
        beside = self.hidden + passed_on + self.chip.cublas_bytes + self.kept + self.workspace
        origin = f"{sampler.name}, {sampler.bytes_per_logit:g} bytes a logit"
        if sampler.has_buffer:
            origin += " and a row of logits for every multiprocessor"
        return Phase(name="sampler", bytes=Bytes(logits + rows + beside), origin=origin)

    def _around(self) -> int:
        """What stands around a layer's widest operation.

        Its callers hold the attention's output and the residual that it was given, and it has a
        residual of its own. A compiled kernel is timed at its first run, with a buffer that
        clears the cache.

        Source: PyTorch ``torch/_inductor/runtime/benchmarking.py``, ``InductorBenchmarker``.
        """
        timed = self.chip.cache_bytes if self.batch.compiled else 0
        passed_on = 2 * self.hidden if self.rank.pp_size > 1 else 0
        return 3 * self.hidden + passed_on + self.chip.cublas_bytes + timed + self.kept

    def _transients(self) -> Iterator[Transient]:
        for _, layer in self.stage.kinds():
            for part in layer.parts:
                transient = part.transient(self.rank)
                if transient is not None:
                    yield transient

    def _transient_bytes(self, transient: Transient) -> int:
        elements = transient.elements + (self.batch.data_parallel - 1) * (
            transient.workspace_elements
        )
        size = self.per_element * elements
        size += self.widths.element_bytes * (transient.context_elements * self.batch.context_tokens)
        if transient.phase == "mlp" and self.rounds_inputs:
            # Opaque operations write 8-bit copies of the product and of the hidden states.
            size += size // 6 + self.hidden // 2
        return size

    def _workspace(self) -> int:
        if keeps_no_workspace(self.stage, self.rank, self.widths):
            return 0
        widest = max((each.workspace_elements for each in self.transients), default=0)
        return self.per_element * self.batch.data_parallel * widest

    def _rounds_inputs(self) -> bool:
        """Whether activations are rounded to 8-bit integers by operations of their own."""
        return any(
            _is_int8(self.widths.quantization, module)
            for _, layer in self.stage.kinds()
            for module in layer_modules(layer, self.rank)
            if isinstance(module, Linear)
        )

    def _encoded(self, version: VllmVersion) -> Encoded:
        """What the first stage encodes before the batch runs."""
        model, batch = self.stage.model, self.batch
        if not self.rank.is_first_stage:
            return Encoded(kept_bytes=Bytes(0), peak_bytes=Bytes(0))
        if model.encoder_item is None:
            kept = Bytes(self.per_element * model.encoder_elements)
            return Encoded(kept_bytes=kept, peak_bytes=Bytes(0))
        return encoded(
            model.encoder_item,
            output_elements=model.encoder_elements,
            max_num_batched_tokens=batch.max_num_batched_tokens,
            max_num_seqs=batch.max_num_seqs,
            element_bytes=self.widths.element_bytes,
            version=version,
        )


def _is_int8(quantization: Quantization, linear: Linear) -> bool:
    return linear.quantizable and isinstance(quantization.scheme(linear), Integer8)
