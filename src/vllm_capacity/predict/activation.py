"""The peak of activation memory in the profiling run: the largest of named phases.

vLLM profiles one full batch, then one sampler run over ``max_num_seqs`` rows of logits. Sizes
follow from the operations; ``docs/method.md`` shows them against measured start-ups.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.predict.model import Transient
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.predict.weights import StageModel
from vllm_capacity.units import MIB, Bytes

#: bf16 logits 2, fp32 logits 4, sorted values 4, sorted int64 indices 8, scratch of CUDA's
#: segmented sort 20.
NATIVE_SORT_BYTES_PER_LOGIT = 38.0
#: bf16 logits 2, fp32 logits 4, masked logits 4, probabilities 4.
FLASHINFER_BYTES_PER_LOGIT = 14.0
#: As FlashInfer's, and half a byte that measured start-ups of 0.17 and 0.19 add.
TRITON_BYTES_PER_LOGIT = 14.5
_NATIVE_SORT = "native sort"
#: A release that sorts, of the time when start-ups that sort were published.
SORTING_RELEASE = VllmVersion(0, 11)
#: First release whose start-ups measure the light sampler; 0.16 still sorts.
_TRITON_SAMPLER = VllmVersion(0, 17)
#: First release seen to take FlashInfer's sampler unless told otherwise.
_FLASHINFER_BY_DEFAULT = VllmVersion(0, 21)
#: First release seen whose MoE workspace outlives the layers that use it.
_MOE_WORKSPACE_STAYS = VllmVersion(0, 13)
#: cuBLAS workspace on Hopper; 8 MiB elsewhere.
_CUBLAS_HOPPER = 32 * MIB
_CUBLAS = 8 * MIB
_PHASE_ORIGINS = {
    "mlp": "gate, up and activated product of one layer",
    "experts": "workspaces of the fused experts",
}
#: How far measured peaks lie from the law: residuals of the start-ups in docs/method.md.
_LAW_ERROR_RATIO = 0.03
_LAW_ERROR_BYTES = 96 * MIB


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
class Sampler:
    """Which top-k/top-p implementation runs, and the bytes that it needs per logit.

    Attributes:
        low, high: the lightest and heaviest implementation that is possible.
    """

    name: str
    bytes_per_logit: float
    low: float
    high: float

    @property
    def sorts(self) -> bool:
        """Whether it is PyTorch's sort, as releases to 0.16 have it."""
        return self.name == _NATIVE_SORT


def choose_sampler(
    version: VllmVersion | None,
    env: Mapping[str, str],
    *,
    flashinfer: bool | None,
    capability: tuple[int, int] | None,
) -> Sampler:
    """The sampler of a release.

    Args:
        version: None where it is not known.
        env: ``VLLM_USE_FLASHINFER_SAMPLER`` decides where it is set.
        flashinfer: whether FlashInfer is installed; None for what the release's image ships.
        capability: compute capability; FlashInfer's sampler needs 7.5.

    Source: vLLM 0.32 ``v1/sample/ops/topk_topp_sampler.py``.
    """
    asked = env.get("VLLM_USE_FLASHINFER_SAMPLER")
    possible = flashinfer is not False and (capability is None or capability >= (7, 5))
    if asked == "1" and possible:
        return _sampler("flashinfer", FLASHINFER_BYTES_PER_LOGIT)
    if asked is None and possible and (version is None or version >= _FLASHINFER_BY_DEFAULT):
        # Triton's is the fallback where FlashInfer turns out not to build for the GPU.
        return Sampler(
            name="flashinfer",
            bytes_per_logit=FLASHINFER_BYTES_PER_LOGIT,
            low=FLASHINFER_BYTES_PER_LOGIT,
            high=TRITON_BYTES_PER_LOGIT,
        )
    if version is None:
        # Without FlashInfer an unknown release may sort; the heavier one is the safer number.
        return Sampler(
            name=_NATIVE_SORT,
            bytes_per_logit=NATIVE_SORT_BYTES_PER_LOGIT,
            low=TRITON_BYTES_PER_LOGIT,
            high=NATIVE_SORT_BYTES_PER_LOGIT,
        )
    if version >= _TRITON_SAMPLER:
        return _sampler("triton", TRITON_BYTES_PER_LOGIT)
    return _sampler(_NATIVE_SORT, NATIVE_SORT_BYTES_PER_LOGIT)


def _sampler(name: str, bytes_per_logit: float) -> Sampler:
    return Sampler(
        name=name, bytes_per_logit=bytes_per_logit, low=bytes_per_logit, high=bytes_per_logit
    )


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
        element_bytes: width of the model's dtype.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    element_bytes: int


def activation_peak(
    stage: StageModel,
    rank: Rank,
    *,
    batch: Batch,
    sampler: Sampler,
    version: VllmVersion,
    capability: tuple[int, int] | None,
) -> ActivationPeak:
    """The peak on one rank."""
    width, tokens, hidden = (
        batch.element_bytes,
        batch.max_num_batched_tokens,
        stage.model.hidden_size,
    )
    cublas = _CUBLAS_HOPPER if capability in {None, (9, 0)} else _CUBLAS
    transients = list(_transients(stage, rank))
    kept = 0
    if version >= _MOE_WORKSPACE_STAYS:
        kept = width * tokens * max((each.workspace_elements for each in transients), default=0)
    # A stage receives hidden states and residual besides its own.
    passed_on = 2 * width * tokens * hidden if rank.pp_size > 1 else 0
    base = width * tokens * hidden + cublas + passed_on + _encoded(stage, rank, width * tokens)
    rows = 2 * width * batch.max_num_seqs * hidden

    def sampling(bytes_per_logit: float) -> int:
        # The numbers of bytes count logits of 16 bits.
        each = bytes_per_logit + width - 2
        logits = each * batch.max_num_seqs * stage.model.vocab_size
        return round(logits) + base + rows + kept

    phases = [_forward_phase(transients, base, width * tokens)]
    if rank.is_last_stage:
        origin = f"{sampler.name}, {sampler.bytes_per_logit:g} bytes a logit"
        peak = Bytes(sampling(sampler.bytes_per_logit))
        phases.append(Phase(name="sampler", bytes=peak, origin=origin))
    phases.sort(key=lambda phase: phase.bytes, reverse=True)
    lows = [phase.bytes for phase in phases if phase.name != "sampler"]
    highs = list(lows)
    if rank.is_last_stage:
        lows.append(Bytes(sampling(sampler.low)))
        highs.append(Bytes(sampling(sampler.high)))
    return ActivationPeak(
        bytes=phases[0].bytes,
        low=Bytes(max(0, max(lows) - _slack(max(lows)))),
        high=Bytes(max(highs) + _slack(max(highs))),
        phases=tuple(phases),
    )


def _encoded(stage: StageModel, rank: Rank, per_element: int) -> int:
    """What a multimodal model keeps besides: the profiled encoder's output, and batch buffers.

    The first stage encodes as many items as a batch has room for before the batch runs.

    Source: vLLM 0.32 ``v1/worker/gpu/model_runner.py``, ``profile_run``;
    ``v1/core/encoder_cache_manager.py``, ``compute_mm_encoder_budget``.
    """
    elements = stage.model.batch_elements
    if rank.is_first_stage:
        elements += stage.model.encoder_elements
    return per_element * elements


def _transients(stage: StageModel, rank: Rank) -> Iterator[Transient]:
    for _, layer in stage.kinds():
        for part in layer.parts:
            transient = part.transient(rank)
            if transient is not None:
                yield transient


def _forward_phase(transients: Sequence[Transient], base: int, per_element: int) -> Phase:
    """The widest part of the profiled batch."""
    if not transients:
        return Phase(name="hidden states", bytes=Bytes(base), origin="hidden states of the batch")
    widest = max(transients, key=lambda transient: transient.elements)
    return Phase(
        name=widest.phase,
        bytes=Bytes(per_element * widest.elements + base),
        origin=_PHASE_ORIGINS.get(widest.phase, "operations of the widest layer"),
    )


def _slack(size: int) -> int:
    return round(size * _LAW_ERROR_RATIO) + _LAW_ERROR_BYTES
