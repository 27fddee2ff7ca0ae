"""Deployments and truths that the tests share, read from tests/data."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from vllm_capacity.predict import Deployment, EngineArgs, Gpu, ModelConfig, VllmVersion
from vllm_capacity.units import GIB, Bytes

DATA = Path(__file__).parent.parent / "data"
H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    total_memory_bytes=Bytes(round(79.18 * GIB)),
)
QWEN3_14B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
QWEN3_14B_FP8 = QWEN3_14B | {
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
}
QWEN3_1_7B = QWEN3_14B | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}


def deployment(
    config: dict[str, Any],
    *,
    gpu: Gpu | None = H100,
    version: str | None = "0.32.0",
    env: dict[str, str] | None = None,
    **engine_args: Any,
) -> Deployment:
    return Deployment(
        model=ModelConfig.from_dict(config),
        engine_args=EngineArgs.from_mapping(engine_args),
        gpu=gpu,
        vllm_version=None if version is None else VllmVersion.parse(version),
        env=env or {},
    )


@cache
def rows(name: str) -> tuple[dict[str, Any], ...]:
    with lzma.open(DATA / f"{name}.jsonl.xz", "rt") as lines:
        return tuple(json.loads(line) for line in lines)


def gpu_of(row: dict[str, Any]) -> Gpu:
    gpu = row["gpu"]
    return Gpu(
        name=gpu["name"],
        compute_capability=gpu["compute_capability"],
        # Two start-ups did not print their total; they ran on the same kind of GPU.
        total_memory_bytes=Bytes(gpu["total_memory"] or round(79.19 * GIB)),
    )
