"""Classes that belong to no larger family, against vLLM 0.32's own model classes.

``models_rest.jsonl.xz`` holds what vLLM 0.32 built on PyTorch's meta device on the first rank of
every pipeline stage: bytes of parameters and buffers, what the layers keep in the KV cache, and
for MiniMax-M3 how many blocks that makes. Sizes are small and odd so that every key shows.
"""

from collections import Counter
from typing import Any

import pytest
from cached_layers import cache_args
from recorded import rows

from vllm_capacity.errors import ModelConfigError
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.kv_cache.planner import make_planner
from vllm_capacity.predict.memory.weights import StageModel, Widths, refusal, weights_bytes
from vllm_capacity.predict.model import Model, NamedCache
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.units import Bytes, Tokens

CASES = rows("models_rest")
PLANNED = [case for case in CASES if "plan" in case["expected"]]
STAGED = [case for case in CASES if case["engine_args"].get("pipeline_parallel_size", 1) > 1]


def _model(config: dict[str, Any]) -> Model:
    described = ModelConfig.from_dict(config)
    assert described.model is not None, described.unsupported
    return described.model


def _ranks(engine_args: dict[str, Any]) -> list[Rank]:
    """The first rank of every stage."""
    tensor_parallel = engine_args.get("tensor_parallel_size", 1)
    return list(
        ranks(
            tensor_parallel=tensor_parallel,
            pipeline_parallel=engine_args.get("pipeline_parallel_size", 1),
            data_parallel=engine_args.get("data_parallel_size", 1),
            expert_parallel=engine_args.get("enable_expert_parallel", False),
        )
    )[::tensor_parallel]


def _stages(model: Model, engine_args: dict[str, Any]) -> list[tuple[StageModel, Rank]]:
    firsts = _ranks(engine_args)
    cut = stage_layers(len(model.layers), len(firsts), {})
    return [(StageModel.of(model, layers), rank) for layers, rank in zip(cut, firsts, strict=True)]


def _caches(model: Model, engine_args: dict[str, Any]) -> list[list[NamedCache]]:
    return [list(stage.caches(rank)) for stage, rank in _stages(model, engine_args)]


def _widths(config: dict[str, Any]) -> Widths:
    quantization, reason = read_quantization(config.get("quantization_config"), argument=None)
    assert quantization is not None, reason
    return Widths(dtype=config["torch_dtype"], quantization=quantization)


def _shape(cache: Any) -> tuple[Any, ...]:
    heads = getattr(cache, "num_kv_heads", 1)
    return heads, cache.head_size, getattr(cache, "sliding_window", None)


def _config(case_id: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(case for case in CASES if case["id"] == case_id)["config"]
    return found | changes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    model, widths = _model(case["config"]), _widths(case["config"])
    stages = _stages(model, case["engine_args"])
    assert [refusal(stage, rank, widths.quantization) for stage, rank in stages] == (
        [None] * len(stages)
    )
    sizes = [weights_bytes(stage, rank, widths) for stage, rank in stages]
    assert sizes == case["expected"]["weights_bytes"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_longest_request_is_that_of_vllm(case: dict[str, Any]) -> None:
    described = ModelConfig.from_dict(case["config"])
    assert described.default_max_model_len == case["expected"]["max_model_len"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_layers_keep_what_vllms_layers_keep(case: dict[str, Any]) -> None:
    stages = _caches(_model(case["config"]), case["engine_args"])
    kept = [Counter(_shape(each.cache) for each in stage) for stage in stages]
    expected: list[Counter[tuple[Any, ...]]] = []
    for stage in case["expected"]["specs"]:
        expected.append(Counter())
        for _, count, *shape in stage:
            expected[-1][tuple(shape)] += count
    assert kept == expected


@pytest.mark.parametrize("case", PLANNED, ids=lambda case: case["id"])
def test_picked_blocks_and_their_index_share_blocks_of_128_tokens(case: dict[str, Any]) -> None:
    arguments, expected = case["engine_args"], case["expected"]["plan"]
    planner = make_planner(
        _caches(_model(case["config"]), arguments),
        cache_args(
            max_model_len=Tokens(case["expected"]["max_model_len"]),
            kv_cache_dtype=arguments.get("kv_cache_dtype", "auto"),
        ),
    )
    plan = planner.plan([Bytes(expected["available"])] * len(_ranks(arguments)), "asked")
    assert planner.block_size == expected["block_size"] == 128
    assert (plan.num_blocks, plan.kv_cache_size_tokens) == (
        expected["num_blocks"],
        expected["tokens"],
    )


def test_every_class_is_tried_over_ranks_and_most_over_stages() -> None:
    classes = {case["config"]["architectures"][0] for case in CASES}
    split = {
        case["config"]["architectures"][0]
        for case in CASES
        if case["engine_args"].get("tensor_parallel_size", 1) > 1
    }
    staged = {case["config"]["architectures"][0] for case in STAGED}
    assert len(classes) >= 40
    assert split == classes
    assert len(staged) >= 15


@pytest.mark.parametrize(
    ("case_id", "changes", "sentence"),
    [
        ("hyperclovax-tp1-pp1", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk"),
        ("hyperclovax-tp1-pp1", {"hidden_act": "gelu"}, "only silu"),
        ("glm4-tp1-pp1", {"vision_config": {"hidden_size": 8}}, "text-only"),
        ("dbrx-tp1-pp1", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("param2-tp1-pp1", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("nas-tp1-pp1", {"position_embedding_type": "rope_llama4"}, "position_embedding_type"),
        ("pangu-tp1-pp1", {"param_sink_number": 128}, "param_sink_number"),
        ("pangu-tp1-pp1", {"interleaved_sliding_window": 64}, "interleaved_sliding_window"),
        ("m3r-tp1-pp1", {"hidden_act": "silu"}, "swigluoai"),
        ("m3r-tp1-pp1", {"num_key_value_heads": 8}, "sparse_num_index_heads"),
    ],
)
def test_what_is_not_described_exactly_is_refused_by_its_key(
    case_id: str, changes: dict[str, Any], sentence: str
) -> None:
    described = ModelConfig.from_dict(_config(case_id, **changes))
    assert described.model is None
    assert sentence in (described.unsupported or "")


def test_experts_that_vllm_does_not_find_cannot_be_distributed() -> None:
    model = _model(_config("dbrx-tp1-pp1"))
    spread = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    stage, rank = _stages(model, spread)[0]
    reason = refusal(stage, rank, _widths(_config("dbrx-tp1-pp1")).quantization)
    assert reason is not None
    assert "enable_expert_parallel" in reason


def test_stages_need_a_word_on_tied_embeddings_where_the_config_class_has_no_default() -> None:
    config = _config("step3-tp1-pp1")
    assert "tie_word_embeddings" in (_model(config).stages_refusal or "")
    assert _model({**config, "tie_word_embeddings": False}).stages_refusal is None


@pytest.mark.parametrize(
    ("case_id", "key", "value"),
    [
        ("solar-tp1-pp1", "tie_word_embeddings", None),
        ("telechat2-tp1-pp1", "tie_word_embeddings", None),
        ("bailing-tp1-pp1", "first_k_dense_replace", None),
        ("nas-tp1-pp1", "block_configs", []),
        ("step3-tp1-pp1", "moe_layers_enum", "one,two"),
        ("m3r-tp1-pp1", "moe_layer_freq", [0, 1]),
    ],
)
def test_a_key_that_nothing_can_stand_in_for_is_a_fault(
    case_id: str, key: str, value: object
) -> None:
    with pytest.raises(ModelConfigError, match=key):
        ModelConfig.from_dict(_config(case_id, **{key: value}))
