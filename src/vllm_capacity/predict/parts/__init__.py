"""Modules of vLLM's model classes, one small file per kind, before any parallelism."""

from vllm_capacity.predict.parts.attention import SelfAttention
from vllm_capacity.predict.parts.embedding import (
    CausalMask,
    LearnedPositions,
    LogitsHead,
    TokenEmbedding,
)
from vllm_capacity.predict.parts.experts import SparseMoe
from vllm_capacity.predict.parts.feed_forward import Mlp
from vllm_capacity.predict.parts.vectors import Vectors

__all__ = [
    "CausalMask",
    "LearnedPositions",
    "LogitsHead",
    "Mlp",
    "SelfAttention",
    "SparseMoe",
    "TokenEmbedding",
    "Vectors",
]
