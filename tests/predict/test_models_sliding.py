"""Models whose layers differ, and drafts, against vLLM 0.32's own classes.

``models_sliding.jsonl.xz`` holds what vLLM 0.32 built on PyTorch's meta device for a platform made
to look like CUDA, one pipeline stage after another, on the first rank of each: bytes of parameters
and buffers, the attention layers with their names, heads, sizes, windows and chunks, and the same
of the draft model where there is one. Most configs vary layers, heads, biases, windows, rotary
scaling and tying at random, so that a builder that reads the wrong key is found.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import LLAMA_8B, rows

from vllm_capacity.errors import ModelConfigError
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache
from vllm_capacity.predict.memory.weights import StageModel, Widths, refusal, weights_bytes
from vllm_capacity.predict.model import Model, NamedCache, Stages
from vllm_capacity.predict.models.drafts import Target, beside_draft, build_draft
from vllm_capacity.predict.models.registry import architectures_of
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.predict.quantization.scheme import Quantization, Unquantized
from vllm_capacity.predict.refusal import Refusal

FAMILY = architectures_of(
    "backend",
    "gated_attention",
    "gemma",
    "gpt_oss",
    "llama4",
    "mimo_v2",
    "sparse_windows",
    "step",
    "windows",
)

CASES = rows("models_sliding")
BUILT = [case for case in CASES if "weights_bytes" in case["expected"]]
DRAFTED = [case for case in BUILT if "draft" in case["expected"]]
REFUSED = [case for case in CASES if "error" in case["expected"]]
SPECS = {
    "FullAttentionSpec": "full",
    "SlidingWindowSpec": "window",
    "ChunkedLocalAttentionSpec": "chunk",
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
}
MIMO = {
    **LLAMA_8B,
    "architectures": ["MiMoForCausalLM"],
    "model_type": "qwen2",
    "num_nextn_predict_layers": 2,
}
EAGLE3 = {
    **LLAMA_8B,
    "architectures": ["LlamaForCausalLMEagle3"],
    "num_hidden_layers": 1,
    "draft_vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def _first_ranks(case: dict[str, Any], model: Model) -> list[Rank]:
    """The first tensor-parallel rank of every stage."""
    args = case["engine_args"]
    every = ranks(
        tensor_parallel=args.get("tensor_parallel_size", 1),
        pipeline_parallel=args.get("pipeline_parallel_size", 1),
        data_parallel=args.get("data_parallel_size", 1),
        expert_parallel=bool(args.get("enable_expert_parallel")) and model.is_moe,
    )
    return [rank for rank in every if rank.tp_rank == 0]


def _model(case: dict[str, Any]) -> Model:
    model = ModelConfig.from_dict(case["config"]).model
    assert model is not None
    method = case["engine_args"].get("speculative_config", {}).get("method", "")
    return beside_draft(model, method)


def _quantization(case: dict[str, Any]) -> Quantization:
    quantization, reason = read_quantization(
        case["config"].get("quantization_config"), argument=None
    )
    assert quantization is not None, reason
    return quantization


def _widths(quantization: Quantization) -> Widths:
    return Widths(dtype="bfloat16", quantization=quantization)


def _stages(case: dict[str, Any], model: Model) -> list[StageModel]:
    count = case["engine_args"].get("pipeline_parallel_size", 1)
    return [StageModel.of(model, layers) for layers in stage_layers(len(model.layers), count, {})]


def _kind(cache: AttentionCache) -> tuple[str, int, int, int, int | None]:
    kind = "window" if cache.sliding_window else "full"
    kind = "chunk" if cache.attention_chunk_size else kind
    size = cache.sliding_window or cache.attention_chunk_size
    return kind, cache.num_kv_heads, cache.head_size, cache.head_size_v, size


def _summary(caches: list[NamedCache]) -> list[list[Any]]:
    """Layers of each kind: how many, the first and the last, in the order that vLLM builds them."""
    by_kind: dict[Any, list[str]] = {}
    for named in caches:
        assert isinstance(named.cache, AttentionCache)
        by_kind.setdefault(_kind(named.cache), []).append(named.name)
    return [[len(names), names[0], names[-1], *kind] for kind, names in by_kind.items()]


def _expected_specs(specs: list[list[Any]]) -> list[list[Any]]:
    return [[*spec[:3], SPECS[spec[3]], *spec[4:]] for spec in specs]


@pytest.mark.parametrize("case", BUILT, ids=lambda case: case["id"])
def test_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    model, quantization = _model(case), _quantization(case)
    built = [
        weights_bytes(stage, rank, _widths(quantization))
        for stage, rank in zip(_stages(case, model), _first_ranks(case, model), strict=True)
    ]
    assert built == case["expected"]["weights_bytes"]


@pytest.mark.parametrize("case", BUILT, ids=lambda case: case["id"])
def test_attention_layers_are_those_that_vllm_built_and_a_drafts_come_last(
    case: dict[str, Any],
) -> None:
    model = _model(case)
    first_ranks = _first_ranks(case, model)
    caches = [
        list(stage.caches(rank))
        for stage, rank in zip(_stages(case, model), first_ranks, strict=True)
    ]
    if "draft" in case["expected"]:
        draft = _draft(case, model)
        stage = StageModel.of(draft, range(len(draft.layers)))
        caches[-1] += list(stage.caches(first_ranks[-1]))
    expected = [_expected_specs(specs) for specs in case["expected"]["specs"]]
    assert [_summary(each) for each in caches] == expected


@pytest.mark.parametrize(
    "case",
    [case for case in BUILT if "max_model_len" not in case["engine_args"]],
    ids=lambda case: case["id"],
)
def test_the_longest_request_is_the_one_that_vllm_derives(case: dict[str, Any]) -> None:
    model = ModelConfig.from_dict(case["config"])
    assert model.default_max_model_len == case["expected"]["max_model_len"]


@pytest.mark.parametrize("case", BUILT, ids=lambda case: case["id"])
def test_nothing_that_vllm_built_is_refused(case: dict[str, Any]) -> None:
    model, quantization = _model(case), _quantization(case)
    assert len(_stages(case, model)) == 1 or model.stages_refusal is None
    for stage, rank in zip(_stages(case, model), _first_ranks(case, model), strict=True):
        assert refusal(stage, rank, quantization) is None


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["id"])
def test_what_vllm_refuses_is_refused(case: dict[str, Any]) -> None:
    try:
        model = ModelConfig.from_dict(case["config"]).model
    except ModelConfigError as error:
        assert error.faults  # noqa: PT017 (either kind of refusal will do)
        return
    if model is None:
        return
    if case["engine_args"].get("pipeline_parallel_size", 1) > 1 and model.stages_refusal:
        return
    rank = _first_ranks(case, model)[0]
    assert refusal(_stages(case, model)[0], rank, Unquantized()) or _draft_is_refused(case, model)


def _draft_is_refused(case: dict[str, Any], model: Model) -> bool:
    try:
        _draft(case, model)
    except Refusal:
        return True
    return False


def _draft(case: dict[str, Any], model: Model) -> Model:
    spec = case["engine_args"]["speculative_config"]
    length = case["engine_args"].get("max_model_len") or case["expected"].get("max_model_len", 1)
    target = Target(
        architecture=case["config"]["architectures"][0],
        config=Fields(case["config"], faults=[]),
        model=model,
        max_model_len=length,
    )
    own = spec.get("config")
    draft = build_draft(
        spec["method"],
        target,
        None if own is None else Fields(own, faults=[]),
        num_speculative_tokens=spec["num_speculative_tokens"],
    )
    assert draft is not None
    return draft


@pytest.mark.parametrize("case", DRAFTED, ids=lambda case: case["id"])
def test_a_draft_has_the_weights_that_vllm_constructs_for_it(case: dict[str, Any]) -> None:
    model = _model(case)
    draft = _draft(case, model)
    stage = StageModel.of(draft, range(len(draft.layers)))
    rank = _first_ranks(case, model)[-1]
    assert refusal(stage, rank, Unquantized()) is None
    found = weights_bytes(stage, rank, _widths(Unquantized()))
    assert found == case["expected"]["draft"]["weights_bytes"]


@pytest.mark.parametrize("architecture", FAMILY)
def test_a_class_is_tried_alone_over_tensor_ranks_and_over_stages(architecture: str) -> None:
    cases = [case for case in BUILT if case["config"]["architectures"] == [architecture]]
    arguments = [case["engine_args"] for case in cases]
    assert any(args.get("tensor_parallel_size", 1) == 1 for args in arguments)
    assert any(args.get("tensor_parallel_size", 1) > 1 for args in arguments)
    staged = any(args.get("pipeline_parallel_size", 1) > 1 for args in arguments)
    assert staged or architecture == "Gemma3nForCausalLM"


def test_experts_are_tried_over_expert_parallel_and_data_parallel_ranks() -> None:
    arguments = [case["engine_args"] for case in BUILT]
    assert sum(bool(args.get("enable_expert_parallel")) for args in arguments) >= 10
    assert sum(args.get("data_parallel_size", 1) > 1 for args in arguments) >= 10


def _caches(config: dict[str, Any]) -> list[AttentionCache]:
    model = ModelConfig.from_dict(config).model
    assert model is not None
    rank = ranks(tensor_parallel=1, pipeline_parallel=1, data_parallel=1, expert_parallel=False)[0]
    stage = StageModel.of(model, range(len(model.layers)))
    return [named.cache for named in stage.caches(rank) if isinstance(named.cache, AttentionCache)]


@given(kinds=st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=1))
def test_the_list_of_layer_types_says_which_layers_have_a_window(kinds: list[str]) -> None:
    config = GEMMA3 | {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    windows = [cache.sliding_window for cache in _caches(config)]
    assert windows == [512 if kind == "sliding_attention" else None for kind in kinds]


@given(layers=st.integers(1, 100), period=st.integers(1, 12))
def test_a_pattern_leaves_every_nth_layer_without_a_window(layers: int, period: int) -> None:
    config = GEMMA3 | {"num_hidden_layers": layers, "sliding_window_pattern": period}
    full = [cache.sliding_window is None for cache in _caches(config)]
    assert sum(full) == layers // period
    assert all(full[period - 1 :: period])


@pytest.mark.parametrize("window", [None, 0])
def test_no_window_leaves_all_layers_alike(window: int | None) -> None:
    caches = _caches(GEMMA3 | {"sliding_window": window})
    assert len(set(caches)) == 1


def test_layers_that_are_alike_share_their_parts_so_that_they_are_measured_once() -> None:
    model = ModelConfig.from_dict(GEMMA3 | {"num_hidden_layers": 60}).model
    assert model is not None
    assert len({id(layer.parts) for layer in model.layers}) == 2


@pytest.mark.parametrize("architecture", FAMILY)
@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                "layer_types",
                "rope_parameters",
                "rope_scaling",
                "rope_theta",
                "sliding_window",
                "head_dim",
                "intermediate_size",
                "num_hidden_layers",
                "num_key_value_heads",
                "num_experts",
                "sliding_windows",
                "attention_other_setting",
                "layer_rope_theta",
                "partial_rotary_factors",
                "moe_layers_enum",
                "hybrid_layer_pattern",
                "no_rope_layers",
            ]
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-1, 70),
            st.floats(allow_nan=False),
            st.text(max_size=3),
            st.lists(st.one_of(st.integers(-1, 3), st.text(max_size=3)), max_size=3),
            st.dictionaries(
                st.sampled_from(["full_attention", "sliding_attention", "factor", "rope_type"]),
                st.one_of(
                    st.integers(-1, 3), st.text(max_size=3), st.dictionaries(st.text(), st.none())
                ),
                max_size=3,
            ),
        ),
        max_size=4,
    )
)
def test_a_value_of_the_wrong_kind_is_a_fault_or_a_refusal_and_never_a_crash(
    architecture: str, values: dict[str, Any]
) -> None:
    config = {"architectures": [architecture], "vocab_size": 1000, **values}
    try:
        model = ModelConfig.from_dict(config)
    except ModelConfigError as error:
        assert error.faults  # noqa: PT017 (a reading without faults is as good)
    else:
        assert (model.model is None) == (model.unsupported is not None)


def test_a_tied_head_that_vllm_does_not_tie_is_refused() -> None:
    config = next(case["config"] for case in DRAFTED if case["id"] == "d-glm-ep")
    model = ModelConfig.from_dict(config | {"tie_word_embeddings": True})
    assert model.unsupported is not None
    assert "tie_word_embeddings" in model.unsupported


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_a_method_without_a_draft_model_needs_nothing(method: str) -> None:
    model = ModelConfig.from_dict(LLAMA_8B).model
    assert model is not None
    target = _target(LLAMA_8B, model)
    assert build_draft(method, target, None, num_speculative_tokens=3) is None


def _target(config: dict[str, Any], model: Model, *, length: int = 8192) -> Target:
    return Target(
        architecture=config["architectures"][0],
        config=Fields(config, faults=[]),
        model=model,
        max_model_len=length,
    )


@pytest.mark.parametrize(
    ("method", "config", "draft", "words"),
    [
        ("mtp", LLAMA_8B, None, "LlamaForCausalLM"),
        ("mtp", {**MIMO, "num_nextn_predict_layers": 0}, None, "num_nextn_predict_layers"),
        ("mtp", MIMO, None, "divisible by 2"),
        ("mtp", MIMO, EAGLE3, "apart from its target"),
        ("eagle3", LLAMA_8B, None, "config.json is needed"),
        ("eagle3", LLAMA_8B, {**EAGLE3, "architectures": ["Other"]}, "Eagle3Other"),
        ("eagle3", LLAMA_8B, {**EAGLE3, "quantization_config": {"bits": 4}}, "quantised draft"),
        ("eagle", LLAMA_8B, {**EAGLE3, "architectures": []}, "names no architectures"),
        ("medusa", LLAMA_8B, EAGLE3, "medusa"),
        ("draft_model", LLAMA_8B, {**LLAMA_8B, "vocab_size": 32000}, "32000 tokens"),
        ("draft_model", LLAMA_8B, {**LLAMA_8B, "architectures": ["Nobody"]}, "Nobody"),
    ],
)
def test_a_draft_that_is_not_described_exactly_is_refused_in_one_sentence(
    method: str, config: dict[str, Any], draft: dict[str, Any] | None, words: str
) -> None:
    model = ModelConfig.from_dict(config).model
    assert model is not None
    own = None if draft is None else Fields(draft, faults=[])
    with pytest.raises(Refusal, match=words):
        build_draft(method, _target(config, model), own, num_speculative_tokens=3)


@given(length=st.integers(1, 200000))
def test_the_rotary_table_of_an_eagle_head_reaches_as_far_as_the_targets_requests(
    length: int,
) -> None:
    model = ModelConfig.from_dict(LLAMA_8B).model
    assert model is not None
    target = _target(LLAMA_8B, model, length=length)
    draft = build_draft("eagle3", target, Fields(EAGLE3, faults=[]), num_speculative_tokens=3)
    assert draft is not None
    tables = {table for part in draft.parts() for table in part.ropes()}
    assert [table.rope.rows() for table in tables] == [max(2048, length)]


def test_a_llama_keeps_its_embedding_on_the_last_stage_beside_an_eagle_head() -> None:
    model = ModelConfig.from_dict(LLAMA_8B).model
    assert model is not None
    alone, beside = beside_draft(model, "mtp"), beside_draft(model, "eagle3")
    assert alone is model
    assert next(each.stages for each in model.outside) is Stages.FIRST
    assert next(each.stages for each in beside.outside) is Stages.FIRST_AND_LAST
