"""Wrappers around text models against vLLM 0.32's own model classes.

``models_multimodal.jsonl.xz`` holds what vLLM 0.32 built on PyTorch's meta device on the first rank
of every pipeline stage: bytes of parameters and buffers, of the towers alone and of everything, and
the layers that keep something in the KV cache. Configurations have published shapes written from
memory, genuine files of publishers, or sizes varied so that a builder that reads the wrong key, or
a wrong default, is found.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import rows

from vllm_capacity.errors import ModelConfigError
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, CrossAttentionCache
from vllm_capacity.predict.memory.weights import StageModel, Widths, weights_bytes
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.multimodal import WRAPPERS
from vllm_capacity.predict.models.renames import RENAMES
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.quantization.scheme import Unquantized

CASES = rows("models_multimodal")
FIRST = {case["config"]["architectures"][0]: case for case in reversed(CASES)}
_SPECS = {AttentionCache: "FullAttentionSpec", CrossAttentionCache: "CrossAttentionSpec"}


def _model(config: dict[str, Any], engine_args: dict[str, Any]) -> Model:
    read = ModelConfig.from_dict(config)
    assert read.model is not None, read.unsupported
    limits = engine_args.get("limit_mm_per_prompt", {})
    only_text = engine_args.get("language_model_only", False)
    return read.model.without_towers(
        lambda modality: not only_text and limits.get(modality, 999) > 0
    )


def _ranks(engine_args: dict[str, Any]) -> list[Rank]:
    """The first rank of every stage."""
    every = ranks(
        tensor_parallel=engine_args.get("tensor_parallel_size", 1),
        pipeline_parallel=engine_args.get("pipeline_parallel_size", 1),
        data_parallel=1,
        expert_parallel=False,
    )
    whole = engine_args.get("mm_encoder_tp_mode") == "data"
    return [replace(rank, encoder_data_parallel=whole) for rank in every if rank.tp_rank == 0]


def _bytes(model: Model, layers: range, rank: Rank, dtype: str) -> int:
    stage = StageModel.of(model, layers)
    return weights_bytes(stage, rank, Widths(dtype=dtype, quantization=Unquantized()))


def _towers(model: Model) -> Model:
    """The model's towers alone, with what the wrapper holds beside them."""
    outside = tuple(
        each
        for each in model.outside
        if each.modalities or (isinstance(each.part, Vectors) and not each.path)
    )
    return replace(model, outside=outside, layers=())


def _is_described(case: dict[str, Any]) -> bool:
    """Whether the text model's family is; the towers of the others are held against vLLM too."""
    return ModelConfig.from_dict(case["config"]).model is not None


DESCRIBED = [case for case in CASES if _is_described(case)]


def test_most_wrappers_have_a_text_model_that_is_described() -> None:
    assert len(DESCRIBED) > 0.6 * len(CASES)


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case["id"])
def test_the_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    model, expected = _model(case["config"], case["engine_args"]), case["expected"]
    stages = stage_layers(len(model.layers), len(expected["weights_bytes"]), {})
    built = [
        _bytes(model, layers, rank, expected["dtype"])
        for layers, rank in zip(stages, _ranks(case["engine_args"]), strict=True)
    ]
    assert built == expected["weights_bytes"]


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case["id"])
def test_every_stage_holds_the_towers_that_vllm_built(case: dict[str, Any]) -> None:
    model = _towers(_model(case["config"], case["engine_args"]))
    built = [
        _bytes(model, range(0), rank, case["expected"]["dtype"])
        for rank in _ranks(case["engine_args"])
    ]
    assert built == case["expected"]["tower_bytes"]


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case["id"])
def test_the_longest_request_is_the_text_models(case: dict[str, Any]) -> None:
    given_length = case["engine_args"].get("max_model_len")
    read = ModelConfig.from_dict(case["config"])
    assert case["expected"]["max_model_len"] == (given_length or read.default_max_model_len)


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case["id"])
def test_layers_of_one_kind_keep_what_vllms_keep(case: dict[str, Any]) -> None:
    model, engine_args = _model(case["config"], case["engine_args"]), case["engine_args"]
    stages = stage_layers(len(model.layers), len(case["expected"]["specs"]), {})
    for layers, rank, specs in zip(
        stages, _ranks(engine_args), case["expected"]["specs"], strict=True
    ):
        if {kind for kind, *_ in specs} - {"FullAttentionSpec", "CrossAttentionSpec"}:
            continue
        kept = Counter(
            (_SPECS.get(type(named.cache)), named.cache.num_kv_heads, named.cache.head_size)
            for named in StageModel.of(model, layers).caches(rank)
            if isinstance(named.cache, AttentionCache | CrossAttentionCache)
        )
        assert kept == Counter(
            {(kind, heads, size): count for kind, count, heads, size, _ in specs}
        )


def test_whispers_encoder_keeps_nothing_and_its_decoder_two_caches_a_layer() -> None:
    case = FIRST["WhisperForConditionalGeneration"]
    model = _model(case["config"], {})
    (rank,) = _ranks({})
    caches = list(StageModel.of(model, range(len(model.layers))).caches(rank))
    assert len(caches) == 2 * len(model.layers)
    assert caches[0].name == ".decoder.layers.0.layers.self_attn.attn"
    assert caches[1].name == ".decoder.layers.0.layers.encoder_attn.attn"


@pytest.mark.parametrize(
    "architecture",
    ["WhisperForConditionalGeneration", "Idefics3ForConditionalGeneration"],
)
def test_what_vllm_cannot_pipeline_says_so(architecture: str) -> None:
    model = _model(FIRST[architecture]["config"], {})
    assert "pipeline stages" in (model.stages_refusal or "")


def test_an_encoder_whose_heads_do_not_divide_refuses_to_start() -> None:
    config = FIRST["Qwen2VLForConditionalGeneration"]["config"]
    config = config | {"vision_config": config["vision_config"] | {"num_heads": 10}}
    model = _model(config, {})
    (rank,) = _ranks({"tensor_parallel_size": 4})
    reasons = [reason for part in model.parts() if (reason := part.refusal(rank))]
    assert reasons[0].startswith("vLLM refuses to start: 10 attention heads")


def test_a_wrapper_around_an_unknown_text_model_is_refused() -> None:
    config = FIRST["LlavaForConditionalGeneration"]["config"]
    config = config | {"text_config": {"architectures": ["NobodyForCausalLM"]}}
    read = ModelConfig.from_dict(config)
    assert read.unsupported == "llava.py around NobodyForCausalLM is not described exactly yet"


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        ("Mistral3ForConditionalGeneration", "vision_config"),
        ("Mistral3ForConditionalGeneration", "text_config"),
        ("Qwen2_5OmniModel", "thinker_config"),
        ("InternVLChatModel", "downsample_ratio"),
        ("InternVLChatModel", "select_layer"),
    ],
)
def test_what_no_class_supplies_is_named(architecture: str, missing: str) -> None:
    config = {key: value for key, value in _config(architecture).items() if key != missing}
    with pytest.raises(ModelConfigError, match=missing):
        ModelConfig.from_dict(config)


def _config(architecture: str) -> dict[str, Any]:
    return FIRST[architecture]["config"]


def test_several_faults_of_an_encoder_are_named_at_once() -> None:
    config = _config("Qwen3VLForConditionalGeneration")
    wrong = {"num_heads": 0, "depth": "many", "intermediate_size": None}
    config = config | {"vision_config": config["vision_config"] | wrong}
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_dict(config)
    named = {fault.key for fault in caught.value.faults}
    assert {f"vision_config.{key}" for key in wrong} <= named


@given(tensor_parallel=st.sampled_from([1, 2, 4, 8]), whole=st.booleans())
def test_a_divided_tower_is_never_larger_than_a_whole_one(
    tensor_parallel: int,
    whole: bool,
) -> None:
    model = _towers(_model(_config("Qwen3VLForConditionalGeneration"), {}))
    mode = "data" if whole else "weights"
    arguments = {"tensor_parallel_size": tensor_parallel, "mm_encoder_tp_mode": mode}
    alone = _bytes(model, range(0), _ranks({})[0], "bfloat16")
    shared = _bytes(model, range(0), _ranks(arguments)[0], "bfloat16")
    assert shared == alone if whole else shared <= alone


@pytest.mark.parametrize("architecture", sorted(FIRST))
def test_a_model_without_its_towers_is_the_text_model(architecture: str) -> None:
    case = FIRST[architecture]
    if not _is_described(case):
        read = ModelConfig.from_dict(case["config"])
        assert "around" in (read.unsupported or "")
        return
    model = _model(case["config"], {})
    alone = model.without_towers(lambda _: False)
    assert not any(each.modalities for each in alone.outside)
    assert alone.layers == model.layers


def test_paligemma_attends_to_whole_images_until_none_are_allowed() -> None:
    case = next(case for case in CASES if case["id"] == "paligemma1-tp1")
    model = _model(case["config"], {})
    assert model.mm_prefix
    assert not model.without_towers(lambda _: False).mm_prefix
    assert not _model(FIRST["LlavaForConditionalGeneration"]["config"], {}).mm_prefix


def test_the_profiled_encoder_leaves_its_output_for_every_layer_that_takes_it() -> None:
    config = _config("Qwen3VLForConditionalGeneration")
    model = _model(config, {})
    levels = len(config["vision_config"]["deepstack_visual_indexes"])
    assert model.encoder_elements == (1 + levels) * model.hidden_size
    assert model.batch_elements == levels * model.hidden_size
    assert model.without_towers(lambda _: False).encoder_elements == 0


@pytest.mark.parametrize(
    ("architecture", "old", "new"),
    [
        ("Qwen3VLForConditionalGeneration", "model.visual.", "visual."),
        ("Mistral3ForConditionalGeneration", "model.vision_tower.", "vision_tower."),
        ("KimiVLForConditionalGeneration", None, None),
    ],
)
def test_a_wrapper_tells_how_it_renames_what_a_quantisation_leaves_out(
    architecture: str, old: str | None, new: str | None
) -> None:
    renames = WRAPPERS[architecture].renames if old is None else RENAMES[architecture]
    assert dict(renames.prefixes).get(old or "") == new
