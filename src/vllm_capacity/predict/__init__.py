"""Predict: from a deployment's description alone, what vLLM will use. Pure; no I/O."""

from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.gpu import Gpu, gpu_given, gpu_named
from vllm_capacity.predict.kv_cache.held import KVCacheLayout
from vllm_capacity.predict.kv_cache.plan import KVCacheGroup, KVCachePlan
from vllm_capacity.predict.memory.budget import MemoryBudget
from vllm_capacity.predict.model_config import ModelConfig
from vllm_capacity.predict.prediction import Deployment, Prediction, predict
from vllm_capacity.predict.resolved import ResolvedArgs
from vllm_capacity.predict.vllm_version import VllmVersion

__all__ = [
    "Deployment",
    "EngineArgs",
    "Gpu",
    "KVCacheGroup",
    "KVCacheLayout",
    "KVCachePlan",
    "MemoryBudget",
    "ModelConfig",
    "Prediction",
    "ResolvedArgs",
    "VllmVersion",
    "gpu_given",
    "gpu_named",
    "predict",
]
