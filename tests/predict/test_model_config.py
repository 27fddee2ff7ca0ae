"""config.json: read exactly, refused in one sentence, or faulted with every wrong key."""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import H100, LLAMA_8B, MOE, QWEN3_14B, QWEN3_14B_FP8, deployment, rows

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, predict

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-3, 3), max_size=2),
)
BASES = (LLAMA_8B, QWEN3_14B, QWEN3_14B_FP8, MOE)


def _read(config: Any) -> tuple[ModelConfig | None, tuple[Fault, ...]]:
    try:
        return ModelConfig.from_dict(config), ()
    except ModelConfigError as error:
        return None, error.faults


def _predict_or_fault(config: Any) -> None:
    model, faults = _read(config)
    if model is None:
        assert all(fault.problem for fault in faults)
        assert faults
        return
    prediction = predict(
        Deployment(
            model=model,
            engine_args=EngineArgs.from_mapping({"max_num_seqs": 8, "max_num_batched_tokens": 512}),
            gpu=H100,
            vllm_version=None,
        )
    )
    assert prediction.supported == (prediction.reason is None)
    if prediction.supported:
        assert prediction.weights_bytes is not None
        assert min(prediction.weights_bytes) > 0
        for plan in prediction.plans:
            assert (plan.error is None) == (plan.num_blocks is not None)
            assert all(size > 0 for size in plan.bytes_per_block)
            assert plan.max_concurrency is None or math.isfinite(plan.max_concurrency)


@given(st.sampled_from(BASES), st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_under_any_key_is_predicted_refused_or_faulted(
    base: dict[str, Any], data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(base)), min_size=1, max_size=4, unique=True))
    _predict_or_fault(base | {key: data.draw(HOSTILE) for key in keys})


@given(st.sampled_from(BASES), st.data())
def test_any_missing_keys_are_predicted_refused_or_faulted(
    base: dict[str, Any], data: st.DataObject
) -> None:
    gone = data.draw(st.lists(st.sampled_from(sorted(base)), max_size=6))
    _predict_or_fault({key: value for key, value in base.items() if key not in gone})


@given(
    st.recursive(
        HOSTILE,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_json_at_all_is_refused_or_faulted(config: Any) -> None:
    _predict_or_fault(config)


@given(st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "original_max_position_embeddings", "partial_rotary_factor", "mrope_section"]), HOSTILE))  # fmt: skip # noqa: E501
def test_any_rope_scaling_is_predicted_refused_or_faulted(scaling: dict[str, Any]) -> None:
    _predict_or_fault(LLAMA_8B | {"rope_scaling": scaling})


@given(st.dictionaries(st.sampled_from(["quant_method", "activation_scheme", "weight_block_size", "ignored_layers", "format", "config_groups"]), HOSTILE))  # fmt: skip # noqa: E501
def test_any_quantisation_config_is_predicted_refused_or_faulted(
    quantization: dict[str, Any],
) -> None:
    _predict_or_fault(LLAMA_8B | {"quantization_config": quantization})


def test_every_faulty_key_is_named_at_once() -> None:
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_dict(
            LLAMA_8B
            | {
                "hidden_size": -1,
                "num_hidden_layers": "32",
                "vocab_size": None,
                "tie_word_embeddings": 1,
                "num_attention_heads": math.nan,
                "intermediate_size": 10**40,
            }
        )
    assert {fault.key for fault in caught.value.faults} >= {
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "tie_word_embeddings",
        "num_attention_heads",
        "intermediate_size",
    }
    assert len(str(caught.value)) < 1500


def test_a_missing_number_of_kv_heads_is_asked_for_where_the_class_default_is_arbitrary() -> None:
    without = {key: value for key, value in QWEN3_14B.items() if key != "num_key_value_heads"}
    with pytest.raises(ModelConfigError, match="num_key_value_heads"):
        ModelConfig.from_dict(without)


def test_heads_that_kv_heads_do_not_divide_are_a_fault() -> None:
    with pytest.raises(ModelConfigError, match="must divide num_attention_heads"):
        ModelConfig.from_dict(LLAMA_8B | {"num_key_value_heads": 5})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architectures": ["NeverForCausalLM"]}, "NeverForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "more than one architecture"),
        ({"vision_config": {"hidden_size": 1}}, "vision_config"),
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention"),
        ({"rope_scaling": {"rope_type": "su-nknown", "factor": 2.0}}, "su-nknown"),
        ({"hidden_act": "gelu"}, "only silu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ],
)
def test_what_is_not_described_exactly_is_refused_in_one_sentence(
    changed: dict[str, Any], words: str
) -> None:
    prediction = predict(deployment(LLAMA_8B | changed))
    assert not prediction.supported
    assert words in (prediction.reason or "")


def test_tied_embeddings_are_counted_once() -> None:
    tied = predict(deployment(LLAMA_8B | {"tie_word_embeddings": True})).weights_bytes
    untied = predict(deployment(LLAMA_8B)).weights_bytes
    assert tied is not None
    assert untied is not None
    assert untied[0] - tied[0] == 128256 * 4096 * 2


@pytest.mark.parametrize(
    ("config", "stages_with_embedding"),
    # Mixtral and Qwen3-MoE build embedding, norm and head on every stage, Llama where used.
    [(LLAMA_8B, 1), (MOE, 2)],
)
def test_pipeline_stages_hold_what_their_class_builds(
    config: dict[str, Any], stages_with_embedding: int
) -> None:
    whole = predict(deployment(config)).weights_bytes
    staged = predict(deployment(config, pipeline_parallel_size=2)).weights_bytes
    assert whole is not None
    assert staged is not None
    table = config["vocab_size"] * config["hidden_size"] * 2
    twice = 2 * table if stages_with_embedding == 2 else 0
    assert sum(staged) - whole[0] == pytest.approx(twice, abs=80_000_000)


def test_whole_experts_spread_over_ranks_and_the_first_take_the_rest() -> None:
    args = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    even = predict(deployment(MOE, **args)).weights_bytes
    odd = predict(deployment(MOE | {"num_experts": 127}, **args)).weights_bytes
    assert even is not None
    assert odd is not None
    assert even[0] == even[1]
    assert odd[0] - odd[1] == 48 * 3 * 2048 * 768 * 2


def test_a_stage_without_sparse_layers_is_refused_as_vllm_does() -> None:
    prediction = predict(
        deployment(MOE | {"mlp_only_layers": list(range(24))}, pipeline_parallel_size=2)
    )
    assert "no sparse layer" in (prediction.reason or "")


@pytest.mark.parametrize(
    ("scaling", "max_model_len"),
    [
        (None, 131072),
        ({"type": "linear", "factor": 2.0}, 262144),
        ({"rope_type": "dynamic", "factor": 4.0}, 524288),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
    ],
)
def test_rope_scaling_lengthens_requests_as_vllm_0_32_does(
    scaling: dict[str, Any] | None, max_model_len: int
) -> None:
    resolved = predict(deployment(LLAMA_8B | {"rope_scaling": scaling})).resolved
    assert resolved is not None
    assert resolved.max_model_len == max_model_len


def test_a_window_for_all_layers_shortens_what_a_long_request_holds() -> None:
    mistral = next(row for row in rows("oracle") if row["id"] == "mistral-7b-v0.1")["config"]
    plan = predict(deployment(mistral)).plans[0]
    assert plan.groups[0].kind == "sliding_window"
    # window − 1 + two batches in flight, and one block for a window that starts within one.
    assert plan.blocks_for_request(10**6) == math.ceil((4095 + 2 * 8192) / 16) + 1


def test_modelopt_declares_its_kv_cache_beside_the_config() -> None:
    quantized = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}  # fmt: skip # noqa: E501
    model = ModelConfig.from_dict(LLAMA_8B, hf_quant_config=quantized)
    prediction = predict(
        Deployment(
            model=model, engine_args=EngineArgs.from_mapping({}), gpu=H100, vllm_version=None
        )
    )
    assert prediction.resolved is not None
    assert prediction.resolved.kv_cache_dtype == "fp8_e4m3"
    assert prediction.bytes_per_token == (65536,)


def test_a_config_is_not_changed_by_reading_it() -> None:
    before = json.dumps(MOE, sort_keys=True)
    ModelConfig.from_dict(MOE)
    assert json.dumps(MOE, sort_keys=True) == before
