"""Every row of the architecture table against vLLM 0.32's own model classes.

``architectures.jsonl.xz`` holds what vLLM 0.32 built on PyTorch's meta device, one pipeline stage
after another, on the first rank of each: bytes of parameters and buffers, and the attention layers
with their KV heads, head size and window. Configs marked ``recalled`` have published shapes written
from memory; ``varied`` ones change layers, heads, biases, tying, rotary scaling and quantisation at
random, so that a row that reads the wrong key is found.
"""

from collections import Counter
from typing import Any

import pytest
from recorded import rows

from vllm_capacity.errors import ModelConfigError
from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, Prediction, predict
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache
from vllm_capacity.predict.parallel import ranks

CASES = rows("architectures")
ARCHITECTURES = sorted({case["config"]["architectures"][0] for case in CASES})


def _predicted(config: dict[str, Any], **engine_args: Any) -> Prediction:
    arguments = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, **engine_args}
    return predict(
        Deployment(
            model=ModelConfig.from_dict(config),
            engine_args=EngineArgs.from_mapping(arguments),
            gpu=None,
            vllm_version=None,
        )
    )


def _config(architecture: str, **changes: Any) -> dict[str, Any]:
    """The first unquantised case of a class, changed."""
    cases = [
        case["config"]
        for case in CASES
        if case["config"]["architectures"] == [architecture]
        and "quantization_config" not in case["config"]
    ]
    return cases[0] | changes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    tensor_parallel = case["tensor_parallel_size"]
    prediction = _predicted(
        case["config"],
        tensor_parallel_size=tensor_parallel,
        pipeline_parallel_size=case["pipeline_parallel_size"],
        enable_expert_parallel=case["enable_expert_parallel"],
    )
    assert prediction.supported, prediction.reason
    assert prediction.weights_bytes is not None
    first_ranks = list(prediction.weights_bytes)[::tensor_parallel]
    assert first_ranks == case["expected"]["weights_bytes"]
    assert prediction.resolved is not None
    assert prediction.resolved.max_model_len == case["expected"]["max_model_len"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_attention_layers_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    expected, tensor_parallel = case["expected"], case["tensor_parallel_size"]
    model = ModelConfig.from_dict(case["config"]).model
    assert model is not None
    rank = ranks(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=1,
        data_parallel=1,
        expert_parallel=False,
    )[0]
    caches = [
        named.cache
        for layer in model.layers
        for part in layer.parts
        for named in part.caches(rank, layer.path)
    ]
    assert caches == [
        AttentionCache(
            num_kv_heads=expected["num_kv_heads"],
            head_size=expected["head_size"],
            head_size_v=expected["head_size"],
            sliding_window=expected["sliding_window"],
        )
    ] * sum(expected["layers"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_is_tried_alone_over_tensor_ranks_and_over_stages(architecture: str) -> None:
    cases = [case for case in CASES if case["config"]["architectures"] == [architecture]]
    assert len(cases) >= 8
    assert max(case["tensor_parallel_size"] for case in cases) > 1
    assert max(case["pipeline_parallel_size"] for case in cases) > 1


def test_quantised_weights_and_expert_parallel_ranks_are_among_the_cases() -> None:
    methods = Counter(
        case["config"].get("quantization_config", {}).get("quant_method") for case in CASES
    )
    assert {"awq", "compressed-tensors", "fp8", "gptq"} <= set(methods)
    assert sum(case["enable_expert_parallel"] for case in CASES) >= 4


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("CohereForCausalLM", {"tie_word_embeddings": False}),
        ("CohereForCausalLM", {"attention_bias": True}),
        ("GPT2LMHeadModel", {"add_cross_attention": True}),
        ("GPTNeoXForCausalLM", {"partial_rotary_factor": 0.5}),
        ("GemmaForCausalLM", {"use_bidirectional_attention": True}),
        ("GlmForCausalLM", {"rotary_pct": 0.25}),
        ("GraniteForCausalLM", {"layer_types": ["full_attention"]}),
        ("GraniteMoeForCausalLM", {"attention_sinks": True}),
        ("InternLM2ForCausalLM", {"bias": True}),
        ("MiniCPMForCausalLM", {"num_experts": 8}),
        ("OlmoForCausalLM", {"partial_rotary_factor": 0.5}),
        ("OlmoeForCausalLM", {"tie_word_embeddings": True}),
        ("PhiForCausalLM", {"qk_layernorm": True}),
        ("PhiForCausalLM", {"rotary_pct": 0.25}),
    ],
)
def test_a_key_that_changes_what_a_row_describes_is_refused(
    architecture: str, changes: dict[str, Any]
) -> None:
    assert not _predicted(_config(architecture, **changes)).supported


def test_tied_embeddings_that_vllm_cannot_pipeline_are_refused() -> None:
    config = _config("Ernie4_5_MoeForCausalLM", tie_word_embeddings=True)
    assert _predicted(config).supported
    assert not _predicted(config, pipeline_parallel_size=2).supported


@pytest.mark.parametrize(
    "architecture", ["ExaoneForCausalLM", "InternLM2ForCausalLM", "InternLM3ForCausalLM"]
)
def test_a_config_class_that_comes_with_the_checkpoint_must_say_whether_embeddings_are_tied(
    architecture: str,
) -> None:
    config = _config(architecture)
    del config["tie_word_embeddings"]
    with pytest.raises(ModelConfigError, match="tie_word_embeddings"):
        ModelConfig.from_dict(config)


def test_an_absent_shared_expert_width_is_a_fault_as_the_config_class_has_one_of_its_own() -> None:
    config = _config("Qwen2MoeForCausalLM")
    del config["shared_expert_intermediate_size"]
    with pytest.raises(ModelConfigError, match="shared_expert_intermediate_size"):
        ModelConfig.from_dict(config)
