"""Bytes of one token in one head, for every KV cache type that vLLM knows by name."""

from typing import NamedTuple

from vllm_capacity.predict.dtypes import FP8_KV_CACHE_DTYPES, element_bytes
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, ceil_div, round_up

#: One scale of four bytes beside every key and every value.
_PER_TOKEN_HEAD = {"int4_per_token_head": 2, "int8_per_token_head": 1, "fp8_per_token_head": 1}
_NVFP4 = frozenset({"nvfp4", "nvfp4_4over6"})
#: Bits of an element of a key and of a value; eight are fp8 without a norm.
#: Source: vLLM 0.32 ``layers/quantization/turboquant/config.py``, ``TQ_PRESETS``.
_TURBOQUANT = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
TURBOQUANT_DTYPES = frozenset(_TURBOQUANT)
#: Latent vector, rotary part and scales in one opaque row.
#: Source: vLLM 0.32 ``model_executor/layers/attention/mla_attention.py``, ``get_kv_cache_spec``.
_PACKED_LATENT = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
_SIXTEEN_BIT = frozenset({"bfloat16", "float16"})


class Format(NamedTuple):
    """How keys and values are packed.

    Attributes:
        element_bytes: bytes of one element.
        content_bytes: bytes of a token in one head slot; None for an element's bytes each.
        slots_per_head: 2 where keys and values are kept apart.
    """

    element_bytes: int
    content_bytes: Bytes | None = None
    slots_per_head: int = 1


def is_quantized(kv_cache_dtype: str) -> bool:
    """Whether it is narrower than a model's dtype.

    Source: vLLM 0.32 ``utils/torch_utils.py``, ``is_quantized_kv_cache``.
    """
    return kv_cache_dtype not in {"auto", *_SIXTEEN_BIT}


def storage_bytes(kv_cache_dtype: str, model_dtype: str) -> int:
    """Bytes of one stored element.

    Source: vLLM 0.32 ``utils/torch_utils.py``, ``kv_cache_dtype_str_to_dtype``.

    Raises:
        Refusal: the KV cache type is not described.
    """
    if kv_cache_dtype == "auto":
        return element_bytes(model_dtype)
    if kv_cache_dtype in _SIXTEEN_BIT:
        return 2
    one_byte = FP8_KV_CACHE_DTYPES | _PER_TOKEN_HEAD.keys() | _NVFP4 | _PACKED_LATENT.keys()
    if kv_cache_dtype in one_byte | TURBOQUANT_DTYPES:
        return 1
    raise Refusal(f"KV cache dtype {kv_cache_dtype} is not described exactly yet")


def attention_format(
    kv_cache_dtype: str, model_dtype: str, head_size: int, head_size_v: int
) -> Format:
    """How one head's key and value are kept.

    Source: vLLM 0.32 ``v1/attention/backends/triton_attn.py``, ``flashinfer.py`` and
    ``turboquant_attn.py``, ``customize_spec``. What reads keys and values of unequal sizes
    (``flash_attn_diffkv.py``) has none: it keeps whole bytes.

    Raises:
        Refusal: the KV cache type is not described for such heads.
    """
    width = storage_bytes(kv_cache_dtype, model_dtype)
    if kv_cache_dtype in _TURBOQUANT:
        return Format(width, _turboquant_bytes(kv_cache_dtype, head_size))
    if kv_cache_dtype in _PER_TOKEN_HEAD and head_size == head_size_v:
        packed = _PER_TOKEN_HEAD[kv_cache_dtype]
        return Format(width, Bytes(head_size // packed + head_size_v // packed + 2 * 4))
    if kv_cache_dtype in _NVFP4:
        if head_size != head_size_v:
            raise Refusal("an nvfp4 KV cache of unequal keys and values is not described")
        # Half a byte an element, and one scale of a byte for 16 of them.
        return Format(width, Bytes(head_size // 2 + head_size // 16), slots_per_head=2)
    if kv_cache_dtype in _PACKED_LATENT:
        raise Refusal(f"vLLM refuses to start: {kv_cache_dtype} is for latent attention only")
    return Format(width)


def _turboquant_bytes(kv_cache_dtype: str, head_size: int) -> Bytes:
    """Key with its norm, and value with scale and zero, of one head; an even number.

    Source: vLLM 0.32 ``layers/quantization/turboquant/config.py``, ``slot_size_aligned``.
    """
    key_bits, value_bits = _TURBOQUANT[kv_cache_dtype]
    key = head_size if key_bits == 8 else ceil_div(head_size * key_bits, 8) + 2
    return Bytes(round_up(key + ceil_div(head_size * value_bits, 8) + 4, 2))


def latent_format(kv_cache_dtype: str, model_dtype: str) -> Format:
    """How one latent vector is kept.

    Raises:
        Refusal: the KV cache type is not described for latent attention.
    """
    if kv_cache_dtype in _NVFP4 | _PER_TOKEN_HEAD.keys() | TURBOQUANT_DTYPES:
        raise Refusal(f"vLLM refuses to start: latent attention has no {kv_cache_dtype} KV cache")
    width = storage_bytes(kv_cache_dtype, model_dtype)
    packed = _PACKED_LATENT.get(kv_cache_dtype)
    return Format(width, None if packed is None else Bytes(packed))
