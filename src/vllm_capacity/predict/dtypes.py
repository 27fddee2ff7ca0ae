"""Widths of the element types that vLLM knows by name."""

#: ``torch_dtype`` or ``--dtype`` spelling → canonical torch name.
MODEL_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
_WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}

#: 8-bit KV cache types of one byte per element with per-tensor scales.
#: Source: vLLM 0.32 ``utils/torch_utils.py``, ``STR_DTYPE_TO_TORCH_DTYPE``.
FP8_KV_CACHE_DTYPES = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2"})


def element_bytes(dtype: str) -> int:
    """Bytes of one element of a model dtype.

    >>> element_bytes("bfloat16")
    2
    """
    return _WIDTHS[dtype]
