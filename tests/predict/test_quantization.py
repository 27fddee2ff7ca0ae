"""Quantisations, compared with what vLLM 0.32 builds.

Each case was constructed by vLLM's own model classes on PyTorch's meta device, as for a CUDA GPU,
and measured: bytes of parameters and buffers on the first rank, or that vLLM refuses.
"""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import gpu_of, rows

from vllm_capacity.predict import Deployment, EngineArgs, ModelConfig, VllmVersion, predict
from vllm_capacity.predict.modules import Attention, Linear, RoutedExperts
from vllm_capacity.predict.prediction import Prediction
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.predict.quantization.module_names import Renaming
from vllm_capacity.predict.quantization.scheme import Quantization

CASES = rows("quantized")
FULL_WIDTH = 2
DOWN = Linear(
    name="model.layers.0.mlp.down_proj",
    shards=("model.layers.0.mlp.down_proj",),
    input_size=4096,
    output_sizes=(1024,),
    split="row",
)
GATE_UP = Linear(
    name="model.layers.0.mlp.gate_up_proj",
    shards=("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"),
    input_size=1024,
    output_sizes=(4096, 4096),
    split="column",
)
HEAD = Linear(
    name="lm_head", shards=("lm_head",), input_size=1024, output_sizes=(32000,), is_head=True
)
EXPERTS = RoutedExperts(
    name="model.layers.0.mlp.experts", num_experts=8, hidden_size=1024, intermediate_size=768
)
MODULES = (DOWN, GATE_UP, HEAD, EXPERTS)


def _predicted(case: dict[str, Any]) -> Prediction:
    return predict(
        Deployment(
            model=ModelConfig.from_dict(
                case["config"], hf_quant_config=case.get("hf_quant_config")
            ),
            engine_args=EngineArgs.from_mapping(case["engine_args"]),
            gpu=gpu_of(case),
            vllm_version=VllmVersion.parse("0.32.0"),
            flashinfer=case["flashinfer"],
        ),
        available_kv_cache_bytes=[1 << 40],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_quantised_model_is_predicted_to_the_byte_or_refused(case: dict[str, Any]) -> None:
    prediction, expected = _predicted(case), case["expected"]
    if not prediction.supported:
        return
    assert prediction.weights_bytes is not None
    assert prediction.resolved is not None
    assert prediction.weights_bytes[0] == expected.get("weights_bytes", "vLLM refuses")
    assert prediction.resolved.quantization == expected["quantization"]
    assert prediction.resolved.kv_cache_dtype == expected["kv_cache_dtype"]


def test_nearly_all_that_vllm_builds_is_supported() -> None:
    built = [case for case in CASES if "weights_bytes" in case["expected"]]
    reasons = Counter(_predicted(case).reason for case in built)
    assert reasons[None] >= 0.97 * len(built), reasons


def _read(config: dict[str, Any] | None, argument: str | None = None, **more: Any) -> Quantization:
    quantization, reason = read_quantization(config, argument=argument, **more)
    assert quantization is not None, reason
    return quantization


def _reason(config: dict[str, Any] | None, argument: str | None = None) -> str:
    quantization, reason = read_quantization(config, argument=argument)
    assert quantization is None
    assert reason is not None
    return reason


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        (GPTQ | {"desc_act": True}, "activation order"),
        (GPTQ | {"sym": False}, "asymmetric"),
        (GPTQ | {"bits": 3}, "3 bits"),
        (GPTQ | {"bits": "4"}, "needs bits"),
        (GPTQ | {"dynamic": {"-:(": {}}}, "not understood"),
        (GPTQ | {"modules_in_block_to_quantize": 3}, "list of names"),
        (AWQ | {"bits": 8}, "8 bits"),
        (AWQ | {"modules_to_not_convert": "lm_head"}, "names"),
        (FP8 | {"activation_scheme": "lazy"}, "activation_scheme"),
        (FP8 | {"ignored_layers": 1}, "list of names"),
        (FP8 | {"weight_block_size": [128]}, "two sizes"),
        (FP8 | {"weight_block_size": "128"}, "whole numbers"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "deprecated"),
        (MODELOPT | {"quant_algo": "FP5"}, "FP5"),
        (MODELOPT | {"quant_algo": None}, "quant_algo"),
        (MODELOPT | {"ignore": "lm_head"}, "list of names"),
        (MODELOPT | {"quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "exclude_modules"),
        (AUTO_ROUND | {"packing_format": "auto_round:fp8"}, "fp8"),
        (AUTO_ROUND | {"extra_config": {"lm_head": 16}}, "extra_config"),
        ({"quant_method": "quark"}, "export"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}}}, "targets"),
        ({"quant_method": "compressed-tensors", "ignore": ["re:("]}, "regular expression"),
        ({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}, "transforms"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 4}}, "kv_cache"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(config: dict[str, Any], words: str) -> None:
    assert words in _reason(config)


@pytest.mark.parametrize(
    ("config", "argument", "name"),
    [
        (GPTQ, "marlin", "auto_gptq"),
        (AWQ, "AWQ_Marlin", "auto_awq"),
        (AWQ, "moe_wna16", "moe_wna16"),
        (MODELOPT, "fp8", "modelopt"),
        (FP8, "fp8", "fp8"),
        ({"quant_method": "compressed_tensors"}, "compressed-tensors", "compressed-tensors"),
    ],
)
def test_an_argument_that_vllm_accepts_beside_a_checkpoint_is_accepted(
    config: dict[str, Any], argument: str, name: str
) -> None:
    assert _read(config, argument).name == name


def test_an_argument_that_contradicts_the_checkpoint_is_refused() -> None:
    assert "does not match" in _reason(FP8, "awq")


def test_a_kv_cache_quantised_by_hf_quant_config_alone_leaves_the_weights_alone() -> None:
    config = {"producer": {"name": "modelopt"}, "quantization": {"kv_cache_quant_algo": "FP8"}}
    quantization = _read({"quant_method": "modelopt"} | config)
    assert quantization.name is None
    assert quantization.kv_cache_dtype is None


@pytest.mark.parametrize("argument", ["fp8", "fp8_per_channel", "fp8_per_block", "mxfp8"])
def test_what_is_quantised_while_it_loads_is_created_at_full_width(argument: str) -> None:
    quantization = _read(None, argument)
    created = quantization.linear_bytes(DOWN, FULL_WIDTH)
    assert created == FULL_WIDTH * DOWN.elements
    assert 0.5 <= quantization.loaded_linear_bytes(DOWN, FULL_WIDTH) / created < 0.55
    experts = quantization.experts_bytes(EXPERTS, FULL_WIDTH)
    assert 0.5 <= quantization.loaded_experts_bytes(EXPERTS, FULL_WIDTH) / experts < 0.55


def test_experts_alone_may_be_quantised_while_they_load() -> None:
    quantization = _read(None, "experts_int8")
    full = FULL_WIDTH * DOWN.elements
    assert quantization.loaded_linear_bytes(DOWN, FULL_WIDTH) == full
    created = quantization.experts_bytes(EXPERTS, FULL_WIDTH)
    assert quantization.loaded_experts_bytes(EXPERTS, FULL_WIDTH) < 0.55 * created


def test_parts_of_a_fused_layer_that_differ_are_refused() -> None:
    quantization = _read(FP8 | {"ignored_layers": ["model.layers.0.mlp.up_proj"]})
    assert "differently" in (quantization.refusal(GATE_UP, tensor_parallel=1) or "")
    assert quantization.refusal(DOWN, tensor_parallel=1) is None


def test_a_model_that_renames_its_modules_renames_the_list_too() -> None:
    renaming = Renaming(prefixes=(("model.language_model.", "language_model.model."),))
    down = Linear(
        name="language_model.model.layers.0.mlp.down_proj",
        shards=("language_model.model.layers.0.mlp.down_proj",),
        input_size=4096,
        output_sizes=(1024,),
    )
    config = FP8 | {"ignored_layers": ["model.language_model.layers.0.mlp.down_proj"]}
    full = FULL_WIDTH * down.elements
    assert _read(config).linear_bytes(down, FULL_WIDTH) < full
    assert _read(config, renaming=renaming).linear_bytes(down, FULL_WIDTH) == full


def test_a_renaming_drops_names_that_vllm_has_no_use_for() -> None:
    renaming = Renaming(
        substrings=((".mid.", ".middle."),),
        prefixes=(("mtp.", None),),
        suffixes=((".w1", ".gate_proj"),),
    )
    names = renaming.apply_all(["mtp.layers.0", "a.mid.w1", "lm_head"])
    assert names == ("a.middle.gate_proj", "lm_head")


def test_latent_attention_has_scales_under_modelopt_only() -> None:
    latent = Attention(name="model.layers.0.self_attn.attn", latent=True)
    assert _read(FP8).attention_bytes(FULL_WIDTH, latent) == 0
    assert _read(MODELOPT).attention_bytes(FULL_WIDTH, latent) == 4 * FULL_WIDTH


def test_a_head_that_is_tied_adds_nothing_unless_it_is_quantised() -> None:
    tied = Linear(
        name="lm_head",
        shards=("lm_head",),
        input_size=8,
        output_sizes=(64,),
        is_head=True,
        is_tied=True,
    )
    assert _read(FP8).linear_bytes(tied, FULL_WIDTH) == 0
    assert _read(FP8).refusal(tied, tensor_parallel=1) is None
    assert "tied" in (_read(AWQ | {"lm_head": True}).refusal(tied, tensor_parallel=1) or "")


WORDS = (
    "",
    "lm_head",
    "re:(",
    "re:.*",
    "int",
    "float",
    "tensor",
    "channel",
    "group",
    "FP8",
    "NVFP4",
    "pack-quantized",
    "float-quantized",
    "dynamic",
    "Linear",
    "*",
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(WORDS)
KEYS = st.sampled_from(["weights", "targets", "type", "bits", "lm_head"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def _paths(value: Any) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict):
        return [()]
    return [()] + [(key, *path) for key, inner in value.items() for path in _paths(inner)]


DECLARED = (case["config"].get("quantization_config") for case in CASES)
TEMPLATES = list({json.dumps(config): config for config in DECLARED if config}.values())


@given(st.sampled_from(TEMPLATES), st.data())
def test_no_malformed_config_ends_in_a_traceback(
    template: dict[str, Any], data: st.DataObject
) -> None:
    config = json.loads(json.dumps(template))
    path = data.draw(st.sampled_from([path for path in _paths(config) if path]))
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(VALUES)
    quantization, reason = read_quantization(config, argument=None)
    assert (quantization is None) == (reason is not None)
    if quantization is None:
        return
    for module in MODULES:
        if quantization.refusal(module, tensor_parallel=2) is None:
            assert _bytes(quantization, module) > 0


def _bytes(quantization: Quantization, module: Linear | RoutedExperts) -> int:
    if isinstance(module, Linear):
        return quantization.linear_bytes(module, FULL_WIDTH)
    return quantization.experts_bytes(module, FULL_WIDTH)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["quant_method"])
def test_no_quantisation_makes_a_layer_wider(template: dict[str, Any]) -> None:
    quantization, _ = read_quantization(template, argument=None)
    for module in MODULES if quantization is not None else ():
        full = _bytes(_read(None), module)
        assert quantization is not None
        # Every GPTQ expert has biases, and a scale is added to what is left alone.
        assert _bytes(quantization, module) <= full
