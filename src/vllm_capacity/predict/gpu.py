"""What a GPU offers: the bytes that CUDA reports, not the ones of the catalogue."""

import re
from dataclasses import dataclass

from vllm_capacity.units import GIB, Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU of the deployment; all of its GPUs are taken to be alike.

    Attributes:
        name: as NVML prints it; vLLM's scheduler defaults look for ``a100`` in it.
        compute_capability: ``"9.0"`` for Hopper; None where unknown.
        total_memory_bytes: what ``cudaMemGetInfo`` reports as total.
    """

    name: str
    compute_capability: str | None
    total_memory_bytes: Bytes

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability as numbers, None where unknown or unreadable."""
        match = re.fullmatch(r"(\d{1,3})\.(\d)", self.compute_capability or "")
        return (int(match[1]), int(match[2])) if match else None


def _gpu(name: str, capability: str, gib: float) -> Gpu:
    return Gpu(name=name, compute_capability=capability, total_memory_bytes=Bytes(round(gib * GIB)))


# Total as printed by vLLM in published start-up logs ("Free memory on device (…/79.19 GiB)",
# "total_gpu_memory (23.53GiB)"), hence within 0.01 GiB; other sizes are absent, not guessed.
_KNOWN = {
    "h100": _gpu("NVIDIA H100 80GB HBM3", "9.0", 79.19),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", "8.0", 79.15),
    "h200": _gpu("NVIDIA H200", "9.0", 139.80),
    "b200": _gpu("NVIDIA B200", "10.0", 178.36),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", "8.9", 23.53),
    "rtx3090": _gpu("NVIDIA GeForce RTX 3090", "8.6", 23.57),
    "rtx5090": _gpu("NVIDIA GeForce RTX 5090", "12.0", 31.40),
    "t4": _gpu("Tesla T4", "7.5", 14.56),
}
_NOISE = re.compile(r"nvidia|tesla|geforce|sxm\d?|pcie|hbm\d?e?|[\s_\-]+", re.IGNORECASE)
_SIZE = re.compile(r"(?<!\d)(\d{1,3})\s*gi?b?(?![a-z0-9])", re.IGNORECASE)
_CATALOGUE_GB = {"h100": 80, "a100": 80, "h200": 141, "b200": 180, "t4": 16}
_CATALOGUE_GB |= {"rtx4090": 24, "rtx3090": 24, "rtx5090": 32}


def gpu_named(name: str) -> Gpu | None:
    """The GPU that a person means by ``name``, None where its reported memory is not known.

    >>> gpu_named("H100 80GB").compute_capability
    '9.0'
    >>> gpu_named("A100 40GB") is None
    True
    """
    size = _SIZE.search(name)
    stem = _NOISE.sub("", _SIZE.sub("", name)).lower()
    stem = stem if stem in _KNOWN else f"rtx{stem}"
    if size is not None and int(size[1]) != _CATALOGUE_GB.get(stem):
        return None
    return _KNOWN.get(stem)


def gpu_given(text: str) -> Gpu:
    """The GPU that an operator names, or whose bytes they give as CUDA reports them.

    Raises:
        ValueError: neither.
    """
    word = text.strip()
    if word.isascii() and word.isdigit() and int(word) > 0:
        return Gpu(name="", compute_capability=None, total_memory_bytes=Bytes(int(word)))
    gpu = gpu_named(word)
    if gpu is None:
        raise ValueError(
            "is not a GPU whose reported memory is known; give its bytes as CUDA reports them"
        )
    return gpu
