"""Models with latent attention against vLLM 0.32's own classes.

``models_latent.jsonl.xz`` holds what vLLM 0.32 built on PyTorch's meta device, with its platform
made to look like CUDA: bytes of parameters and buffers of the first rank of every pipeline stage,
the runs of cache layers, and the bytes of the predictor where one was asked for. Configs are
published ones and some written from memory, with fewer layers; widths, missing keys, rotary
scaling and patterns vary. ``refused`` rows are those with which vLLM did not start.
"""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import rows

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    CompressedIndexerCache,
    CompressedLatentCache,
    CompressorStateCache,
    IndexerCache,
    LatentCache,
    LayerCache,
    StateCache,
    WindowLatentCache,
)
from vllm_capacity.predict.memory.weights import StageModel, Widths, refusal, weights_bytes
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.latent_drafts import PREDICTORS
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.parts.latent_attention import LatentAttention
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.predict.quantization.deepseek_v4 import read_deepseek_v4
from vllm_capacity.predict.quantization.scheme import Quantization
from vllm_capacity.predict.refusal import Refusal

ALL = rows("models_latent")
CASES = [case for case in ALL if "expected" in case]
REFUSED = [case for case in ALL if "refused" in case]
DRAFTED = [case for case in CASES if "draft_weights_bytes" in case["expected"]]
ARCHITECTURES = sorted({case["config"]["architectures"][0] for case in CASES})


def _named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def _config(case_id: str, **changes: Any) -> dict[str, Any]:
    return next(case["config"] for case in ALL if case["id"] == case_id) | changes


def _described(case: dict[str, Any]) -> tuple[ModelConfig, Model]:
    quantized = case.get("hf_quant_config")
    described = ModelConfig.from_dict(case["config"], hf_quant_config=quantized)
    if described.model is None:
        raise Refusal(described.unsupported or "")
    return described, described.model


def _ranks(args: dict[str, Any]) -> list[Rank]:
    """The first rank of every stage."""
    tensor_parallel = args.get("tensor_parallel_size", 1)
    every = ranks(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=args.get("pipeline_parallel_size", 1),
        data_parallel=args.get("data_parallel_size", 1),
        expert_parallel=args.get("enable_expert_parallel", False),
    )
    return list(every[::tensor_parallel])


def _stages(model: Model, stages: int) -> list[StageModel]:
    divided = stage_layers(len(model.layers), stages, {})
    return [StageModel.of(model, layers) for layers in divided]


def _quantization(config: dict[str, Any], described: ModelConfig) -> Quantization:
    quantized = described.quantization_config
    if quantized is not None and config["model_type"] == "deepseek_v4":
        fields = Fields(quantized, faults=[])
        read, reason = read_deepseek_v4(fields, expert_dtype=config.get("expert_dtype"))
    else:
        read, reason = read_quantization(quantized, argument=None)
    assert read is not None, reason
    return read


def _widths(case: dict[str, Any], described: ModelConfig, model: Model) -> Widths:
    args = case["engine_args"]
    own_operations = args.get("enforce_eager", False) or not model.compiled
    return Widths(
        dtype=args.get("dtype") or described.dtype or "bfloat16",
        quantization=_quantization(case["config"], described),
        flashinfer=case.get("flashinfer", False) and own_operations,
    )


def _why_not(case: dict[str, Any]) -> str | None:
    """Why the case would not start, None if it would."""
    try:
        described, model = _described(case)
    except ModelConfigError as error:
        return str(error)
    except Refusal as refused:
        return str(refused)
    firsts = _ranks(case["engine_args"])
    stages = _stages(model, len(firsts))
    sparse = [any(layer.is_sparse for layer in stage.layers) for stage in stages]
    if model.is_moe and not (all(sparse) or model.dense_stages):
        return "a pipeline stage has no sparse layer"
    quantization = _widths(case, described, model).quantization
    return refusal(stages[0], firsts[0], quantization)


def _as_vllm(cache: LayerCache) -> tuple[Any, ...]:
    """What vLLM calls a layer's cache, and the numbers that tell it from others."""
    match cache:
        case LatentCache() | IndexerCache():
            return ("MLAAttentionSpec", 1, cache.head_size)
        case CompressedLatentCache() | CompressedIndexerCache():
            return ("MLAAttentionSpec", 1, cache.head_size, cache.compress_ratio)
        case WindowLatentCache():
            return ("SlidingWindowMLASpec", 1, cache.head_size, cache.sliding_window)
        case CompressorStateCache():
            window = cache.compress_ratio * (2 if cache.compress_ratio == 4 else 1)
            return ("SlidingWindowMLASpec", 1, cache.state_size, window)
        case StateCache():
            return ("MambaSpec", [list(state.shape) for state in cache.states])
        case AttentionCache():
            return ("FullAttentionSpec", cache.num_kv_heads, cache.head_size)
    raise AssertionError(cache)


def _runs(stage: StageModel, rank: Rank) -> list[list[Any]]:
    runs: dict[str, list[Any]] = {}
    for name, cache in stage.caches(rank):
        kind = list(_as_vllm(cache))
        run = runs.setdefault(json.dumps(kind), [kind, 0, name, name])
        run[1] += 1
        run[3] = name
    return list(runs.values())


@_named(CASES)
def test_the_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    described, model = _described(case)
    firsts, widths = _ranks(case["engine_args"]), _widths(case, described, model)
    stages = _stages(model, len(firsts))
    assert refusal(stages[0], firsts[0], widths.quantization) is None
    built = [weights_bytes(*pair, widths) for pair in zip(stages, firsts, strict=True)]
    assert built == case["expected"]["weights_bytes"]


@_named([case for case in CASES if case not in DRAFTED])
def test_the_cache_layers_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    _, model = _described(case)
    firsts = _ranks(case["engine_args"])
    stages = _stages(model, len(firsts))
    built = [_runs(*pair) for pair in zip(stages, firsts, strict=True)]
    assert built == case["expected"]["caches"]


@_named(CASES)
def test_the_longest_request_is_vllms(case: dict[str, Any]) -> None:
    described, _ = _described(case)
    assert described.default_max_model_len == case["expected"]["max_model_len"]


@_named(DRAFTED)
def test_the_predictor_is_the_one_that_vllm_built(case: dict[str, Any]) -> None:
    faults: list[Fault] = []
    target = Fields(case["config"], faults=faults)
    draft = PREDICTORS[case["config"]["architectures"][0]](target)
    assert not faults
    described, model = _described(case)
    last, stage = _ranks(case["engine_args"])[-1], _stages(draft, 1)[0]
    built = weights_bytes(stage, last, _widths(case, described, draft))
    assert built == case["expected"]["draft_weights_bytes"]
    of_target = _stages(model, len(_ranks(case["engine_args"])))[-1]
    both = Counter[str]()
    for each in (of_target, stage):
        both.update(json.dumps(_as_vllm(cache)) for _, cache in each.caches(last))
    wanted = {json.dumps(kind): count for kind, count, _, _ in case["expected"]["caches"][-1]}
    assert dict(both) == wanted
    names = [name for each in (of_target, stage) for name, _ in each.caches(last)]
    assert names[-1].split(".")[2] == max(
        (last_name.split(".")[2] for _, _, _, last_name in case["expected"]["caches"][-1]), key=int
    )


@_named(REFUSED)
def test_what_vllm_refuses_is_refused(case: dict[str, Any]) -> None:
    assert _why_not(case)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_is_tried_alone_over_tensor_ranks_and_over_stages(architecture: str) -> None:
    tried = [
        case["engine_args"] for case in CASES if case["config"]["architectures"] == [architecture]
    ]
    assert len(tried) >= 5
    assert any(args.get("tensor_parallel_size", 1) > 1 for args in tried)
    assert any(args.get("pipeline_parallel_size", 1) > 1 for args in tried)


@pytest.mark.parametrize(
    ("case_id", "changes", "word"),
    [
        ("v2l", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type"),
        ("v2l", {"hidden_act": "gelu"}, "silu"),
        ("v2l", {"is_causal": False}, "is_causal"),
        ("v1", {"rswa_window": 128}, "rswa_window"),
        ("gl", {"head_dim": 192}, "head_dim"),
        ("gl", {"index_topk": 2048}, "index_topk"),
        ("mc", {"num_experts": 8}, "num_experts"),
        ("pu", {"model_type": "pangu"}, "latent"),
        ("sv", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope type"),
        ("f", {"vision_n_layers": 12}, "vision_n_layers"),
        ("f", {"compress_ratios": [2] * 8}, "compress_ratios"),
        ("kl", {"mla_use_nope": False}, "positions"),
        ("kl", {"linear_attn_config": None}, "linear_attn_config"),
        ("kl", {"hidden_act": "gelu"}, "silu"),
        ("b", {"use_bias": True}, "use_bias"),
        ("b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type"),
    ],
)
def test_what_is_not_exact_is_refused(case_id: str, changes: dict[str, Any], word: str) -> None:
    described = ModelConfig.from_dict(_config(case_id, **changes))
    assert described.model is None
    assert word in (described.unsupported or "")


@pytest.mark.parametrize(
    ("case_id", "key"),
    [
        ("v32", "index_n_heads"),
        ("f", "compress_ratios"),
        ("f", "compress_rope_theta"),
        ("f", "hc_mult"),
        ("gl", "first_k_dense_replace"),
        ("mc", "tie_word_embeddings"),
        ("lc", "zero_expert_num"),
        ("sv", "num_experts"),
    ],
)
def test_a_missing_key_is_a_fault_that_names_it(case_id: str, key: str) -> None:
    config = _config(case_id)
    del config[key]
    with pytest.raises(ModelConfigError, match=key):
        ModelConfig.from_dict(config)


def test_heads_that_ranks_cannot_share_are_refused() -> None:
    for case_id in ("r1", "f", "kl", "b", "mc"):
        case = {"config": _config(case_id), "engine_args": {"tensor_parallel_size": 7}}
        assert "divisible" in (_why_not(case) or "")


def test_predictors_are_refused_where_vllm_reads_none() -> None:
    for case_id in ("k2", "f", "g5", "gl"):
        config = _config(case_id, num_nextn_predict_layers=0)
        with pytest.raises(Refusal):
            PREDICTORS[config["architectures"][0]](Fields(config, faults=[]))


@given(st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_copies_of_latent_attention_after_load_are_divided_by_the_ranks(ranks_of: int) -> None:
    _, model = _described({"config": _config("r1")})
    part = model.layers[0].parts[0]
    assert isinstance(part, LatentAttention)
    alone, shared = (_ranks({"tensor_parallel_size": size})[0] for size in (1, ranks_of))
    assert part.after_load_elements(alone) == ranks_of * part.after_load_elements(shared)
    assert part.after_load_elements(alone) == 128 * (128 + 128) * 512


def test_layers_that_are_alike_share_their_parts() -> None:
    for case_id in ("r1", "g52", "f", "kl", "b"):
        _, model = _described({"config": _config(case_id)})
        kinds = {id(layer.parts) for layer in model.layers}
        assert len(kinds) == len({repr(layer.parts) for layer in model.layers})
