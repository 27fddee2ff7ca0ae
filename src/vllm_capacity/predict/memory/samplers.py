"""Which top-k/top-p sampler a release runs, and what its profiling run needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_capacity.predict.vllm_version import VllmVersion

#: bf16 logits 2, fp32 logits 4, sorted values 4, sorted int64 indices 8, scratch of CUDA's
#: segmented sort 20.
NATIVE_SORT_BYTES_PER_LOGIT = 38.0
#: bf16 logits 2, fp32 logits 4, masked logits 4, probabilities 4.
FLASHINFER_BYTES_PER_LOGIT = 14.0
#: bf16 logits 2, fp32 logits 4 masked in place, probabilities 4, exponential noise 4.
TRITON_BYTES_PER_LOGIT = 14.0
_NATIVE_SORT = "native sort"
#: First release whose start-ups measure the light sampler; 0.16 still sorts.
_TRITON_SAMPLER = VllmVersion(0, 17)
#: First release seen to take FlashInfer's sampler unless told otherwise.
_FLASHINFER_BY_DEFAULT = VllmVersion(0, 21)
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A top-k/top-p implementation.

    Attributes:
        bytes_per_logit: bytes for each of ``max_num_seqs`` × vocabulary logits of 16 bits.
        has_buffer: whether it has a float32 row of logits for every multiprocessor besides.
        alternatives: what may run instead.
    """

    name: str
    bytes_per_logit: float
    has_buffer: bool = False
    alternatives: tuple["Sampler", ...] = ()

    @property
    def sorts(self) -> bool:
        """Whether it is PyTorch's sort, as releases to 0.16 have it."""
        return self.name == _NATIVE_SORT

    def logits_bytes(
        self, *, max_num_seqs: int, vocab_size: int, element_bytes: int, multiprocessors: int
    ) -> int:
        """Bytes for all logits of the profiling run.

        Source of the buffer: vLLM 0.32 ``v1/sample/ops/topk_topp_triton.py``,
        ``apply_top_k_top_p_triton``.
        """
        each = self.bytes_per_logit + element_bytes - 2
        rows = 0
        if self.has_buffer:
            programs = min(multiprocessors, max_num_seqs)
            rows = min(1 << max(0, programs - 1).bit_length(), multiprocessors)
        return round(each * max_num_seqs * vocab_size) + _FLOAT32 * rows * vocab_size


_FLASHINFER = Sampler(name="flashinfer", bytes_per_logit=FLASHINFER_BYTES_PER_LOGIT)
_TRITON = Sampler(name="triton", bytes_per_logit=TRITON_BYTES_PER_LOGIT, has_buffer=True)
_SORT = Sampler(name=_NATIVE_SORT, bytes_per_logit=NATIVE_SORT_BYTES_PER_LOGIT)


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
        return _FLASHINFER
    if asked is None and possible and (version is None or version >= _FLASHINFER_BY_DEFAULT):
        # Triton's is the fallback where FlashInfer turns out not to build for the GPU.
        return replace(_FLASHINFER, alternatives=(_TRITON,))
    if version is None:
        # Without FlashInfer an unknown release may sort; the heavier one is the safer number.
        return replace(_SORT, alternatives=(_TRITON,))
    return _TRITON if version >= _TRITON_SAMPLER else _SORT
