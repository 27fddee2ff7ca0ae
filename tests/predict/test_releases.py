"""Which releases are described."""

import pytest

from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, VllmVersion, predict

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("version", "supported"),
    [("0.6.6", False), ("0.8.4", False), ("0.8.5", True), ("0.33.0", True)],
)
def test_releases_before_the_oldest_described_one_are_refused(
    version: str, supported: bool
) -> None:
    prediction = predict(
        Deployment(
            model=ModelConfig.from_dict(LLAMA),
            engine_args=EngineArgs.from_mapping({"kv_cache_memory_bytes": 1 << 30}),
            gpu=None,
            vllm_version=VllmVersion.parse(version),
        )
    )
    assert prediction.supported is supported
    assert (prediction.reason is None) is supported
