"""State-space, delta-net and short-convolution models against vLLM 0.32's own model classes.

``models_state_space.jsonl.xz`` holds what vLLM 0.32 built for a CUDA GPU on PyTorch's meta device,
one pipeline stage after another, on the first tensor rank of each: bytes of parameters and
buffers, and what every attention-like layer keeps, by vLLM's names. Cases with an ``error`` are
those in which vLLM does not start.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import rows

from vllm_capacity.errors import Fault, ModelConfigError
from vllm_capacity.predict import ModelConfig
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, LatentCache, StateCache
from vllm_capacity.predict.memory.weights import StageModel, Widths, refusal, weights_bytes
from vllm_capacity.predict.model import Model, NamedCache
from vllm_capacity.predict.models.registry import architectures_of
from vllm_capacity.predict.models.state_space_drafts import DRAFTS
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.predict.quantization.scheme import Quantization

FAMILY = architectures_of(
    "falcon_h1",
    "granite_hybrid",
    "jamba",
    "lfm2",
    "mamba",
    "nemotron_h",
    "olmo_hybrid",
    "qwen_delta_net",
    "zamba2",
)

ROWS = rows("models_state_space")
CASES = [row for row in ROWS if "error" not in row["expected"]]
REFUSED = [row for row in ROWS if "error" in row["expected"]]
DRAFTED = [row for row in CASES if "draft_weights_bytes" in row["expected"]]
RECURRENT = [
    row
    for row in CASES
    if any("dtypes" in spec for stage in row["expected"]["specs"] for spec in stage)
]
#: vLLM's names of the kinds of state, as it writes them in its specs.
KINDS = {
    "GDN_ATTN": "gdn_attention",
    "LINEAR": "linear_attention",
    "MAMBA1": "mamba1",
    "MAMBA2": "mamba2",
    "SHORT_CONV": "short_conv",
}


def _name(case: dict[str, Any]) -> str:
    return str(case["id"])


def _ranks(case: dict[str, Any]) -> tuple[Rank, ...]:
    """The first tensor rank of every stage."""
    args = case["engine_args"]
    tensor_parallel = args.get("tensor_parallel_size", 1)
    every = ranks(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=args.get("pipeline_parallel_size", 1),
        data_parallel=args.get("data_parallel_size", 1),
        expert_parallel=args.get("enable_expert_parallel", False),
    )
    return every[::tensor_parallel]


def _stages(model: Model, case: dict[str, Any]) -> list[StageModel]:
    layers = stage_layers(len(model.layers), len(_ranks(case)), {})
    return [StageModel.of(model, stage) for stage in layers]


def _model(case: dict[str, Any]) -> Model:
    described = ModelConfig.from_dict(case["config"])
    assert described.model is not None, described.unsupported
    return described.model


def _draft(case: dict[str, Any]) -> Model:
    faults: list[Fault] = []
    model = DRAFTS[case["config"]["architectures"][0]](Fields(case["config"], faults=faults))
    assert not faults
    return model


def _quantization(case: dict[str, Any]) -> Quantization:
    published = case["config"].get("quantization_config")
    quantization, reason = read_quantization(published, argument=None)
    assert quantization is not None, reason
    return quantization


def _widths(case: dict[str, Any]) -> Widths:
    published = ModelConfig.from_dict(case["config"]).dtype
    # vLLM runs what is published in float32 in a narrower type unless told otherwise.
    auto = "float16" if published == "float16" else "bfloat16"
    return Widths(
        dtype=case["engine_args"].get("dtype") or auto,
        quantization=_quantization(case),
        router_kernels=case.get("compute_capability", "9.0") in {"9.0", "10.0"},
    )


def _caches(case: dict[str, Any]) -> list[list[NamedCache]]:
    """What every stage's layers keep, a draft's after the last."""
    pairs = zip(_stages(_model(case), case), _ranks(case), strict=True)
    caches = [list(stage.caches(rank)) for stage, rank in pairs]
    if case in DRAFTED:
        draft = _draft(case)
        stage = StageModel.of(draft, range(len(draft.layers)))
        caches[-1].extend(stage.caches(_ranks(case)[-1]))
    return caches


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_the_weights_of_every_stage_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    widths, model = _widths(case), _model(case)
    pairs = list(zip(_stages(model, case), _ranks(case), strict=True))
    assert refusal(pairs[0][0], pairs[0][1], widths.quantization) is None
    sizes = [weights_bytes(stage, rank, widths) for stage, rank in pairs]
    assert sizes == case["expected"]["weights_bytes"]


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_the_longest_request_is_the_one_that_vllm_derived(case: dict[str, Any]) -> None:
    described = ModelConfig.from_dict(case["config"])
    assert described.default_max_model_len == case["expected"]["max_model_len"]


@pytest.mark.parametrize("case", DRAFTED, ids=_name)
def test_the_weights_of_a_draft_are_those_that_vllm_built(case: dict[str, Any]) -> None:
    draft = _draft(case)
    stage = StageModel.of(draft, range(len(draft.layers)))
    size = weights_bytes(stage, _ranks(case)[-1], _widths(case))
    assert size == case["expected"]["draft_weights_bytes"]


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_the_layers_that_keep_something_have_vllms_names_and_order(case: dict[str, Any]) -> None:
    for caches, specs in zip(_caches(case), case["expected"]["specs"], strict=True):
        names = [named.name for named in caches]
        assert len(names) == len(set(names)) == sum(spec["count"] for spec in specs)
        places = [names.index(spec["first"]) for spec in specs]
        assert places == sorted(places)
        assert all(spec["last"] in names for spec in specs)


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_every_layer_keeps_what_vllm_says_it_keeps(case: dict[str, Any]) -> None:
    drafts = case["engine_args"].get("speculative_config", {}).get("num_speculative_tokens", 0)
    for caches, specs in zip(_caches(case), case["expected"]["specs"], strict=True):
        by_name = {named.name: named.cache for named in caches}
        for spec in specs:
            for name in (spec["first"], spec["last"]):
                assert _facts(by_name[name], drafts) == _expected_facts(spec)
        kept = Counter(repr(_facts(named.cache, drafts)) for named in caches)
        said: Counter[str] = Counter()
        for spec in specs:
            said[repr(_expected_facts(spec))] += spec["count"]
        assert kept == said


def _facts(cache: object, drafts: int) -> tuple[Any, ...]:
    if isinstance(cache, StateCache):
        grown = [
            [state.shape[0] + drafts * state.grows_with_drafts, *state.shape[1:]]
            for state in cache.states
        ]
        return (str(cache.kind), grown)
    if isinstance(cache, LatentCache):
        return (1, cache.head_size, None)
    assert isinstance(cache, AttentionCache)
    return (cache.num_kv_heads, cache.head_size, cache.sliding_window)


def _expected_facts(spec: dict[str, Any]) -> tuple[Any, ...]:
    if "shapes" in spec:
        return (KINDS[spec["kind"]], spec["shapes"])
    return (spec["num_kv_heads"], spec["head_size"], spec.get("sliding_window"))


@pytest.mark.parametrize("case", RECURRENT, ids=_name)
def test_states_have_the_type_that_the_model_asks_for_or_its_own(case: dict[str, Any]) -> None:
    state_dtype, own = _model(case).state_dtype, _widths(case).dtype
    states = [spec for stage in case["expected"]["specs"] for spec in stage if "dtypes" in spec]
    for spec in states:
        convolution, *recurrent = spec["dtypes"]
        assert convolution == own
        assert set(recurrent) <= {state_dtype or own}


@pytest.mark.parametrize("case", REFUSED, ids=_name)
def test_what_vllm_does_not_start_is_refused_too(case: dict[str, Any]) -> None:
    assert list(_objections(case))


def _objections(case: dict[str, Any]) -> Iterator[str]:
    try:
        described = ModelConfig.from_dict(case["config"])
    except ModelConfigError as error:
        yield str(error)
        return
    if described.model is None:
        yield described.unsupported or ""
        return
    stages = _stages(described.model, case)
    if len(stages) > 1 and described.model.stages_refusal is not None:
        yield described.model.stages_refusal
    sparse = [any(layer.is_sparse for layer in stage.layers) for stage in stages]
    if not (all(sparse) or described.model.dense_stages):
        yield "a stage without a sparse layer"
    reason = refusal(stages[0], _ranks(case)[0], _quantization(case))
    if reason is not None:
        yield reason


@pytest.mark.parametrize("architecture", FAMILY)
def test_every_class_is_among_the_cases(architecture: str) -> None:
    assert any(row["config"]["architectures"] == [architecture] for row in ROWS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_state_is_among_the_cases(kind: str) -> None:
    kinds = {
        spec.get("kind") for case in CASES for stage in case["expected"]["specs"] for spec in stage
    }
    assert kind in kinds


def _first(architecture: str) -> dict[str, Any]:
    config: dict[str, Any] = next(
        case["config"] for case in CASES if case["config"]["architectures"] == [architecture]
    )
    return config


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("FalconH1ForCausalLM", {"hidden_act": "gelu"}),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["mamba"]}),
        ("GraniteMoeSharedForCausalLM", {"attention_sinks": True}),
        ("JambaForCausalLM", {"attn_layer_offset": 8, "attn_layer_period": 8}),
        ("Lfm2ForCausalLM", {"block_ffn_dim_multiplier": None}),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "MX", "layers_block_type": None}),
        ("NemotronHForCausalLM", {"block_configs": [{"block_type": "moe"}]}),
        ("OlmoHybridForCausalLM", {"linear_use_gate": False}),
        ("Qwen3NextForCausalLM", {"dual_chunk_attention_config": {"chunk_size": 8192}}),
        ("Qwen3_5ForCausalLM", {"model_type": "qwen3_5_moe_text"}),
        ("Zamba2ForCausalLM", {"hidden_act": "silu"}),
        ("Zamba2ForCausalLM", {"use_long_context": True, "max_position_embeddings": 4096}),
    ],
)
def test_a_key_that_changes_what_is_described_is_refused(
    architecture: str, changes: dict[str, Any]
) -> None:
    described = ModelConfig.from_dict(_first(architecture) | changes)
    assert described.model is None
    assert described.unsupported


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("JambaForCausalLM", "num_key_value_heads"),
        ("Lfm2ForCausalLM", "conv_dim"),
        ("Lfm2MoeForCausalLM", "layer_types"),
        ("MambaForCausalLM", "hidden_size"),
        ("Qwen3NextForCausalLM", "num_experts_per_tok"),
        ("Zamba2ForCausalLM", "layers_block_type"),
    ],
)
def test_a_key_that_no_default_can_stand_for_is_asked_for(architecture: str, key: str) -> None:
    config = {name: value for name, value in _first(architecture).items() if name != key}
    with pytest.raises(ModelConfigError, match=key):
        ModelConfig.from_dict(config)


def test_heads_that_do_not_fill_the_channels_are_a_fault() -> None:
    config = _first("GraniteMoeHybridForCausalLM") | {"mamba_d_head": 7}
    with pytest.raises(ModelConfigError, match="mamba_d_head"):
        ModelConfig.from_dict(config)


_MAMBA2 = _first("Mamba2ForCausalLM") | {"num_hidden_layers": 2}
_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 40),
    st.floats(allow_nan=True),
    st.text(max_size=6),
    st.lists(st.text(max_size=4), max_size=3),
)


@pytest.mark.parametrize("architecture", FAMILY)
@given(data=st.data())
def test_any_value_of_any_key_is_described_refused_or_a_fault(
    architecture: str, data: st.DataObject
) -> None:
    config = _first(architecture)
    key = data.draw(st.sampled_from(sorted(set(config) - {"architectures"})))
    changed = config | {key: data.draw(_ANYTHING)}
    described: ModelConfig | None = None
    with suppress(ModelConfigError):
        described = ModelConfig.from_dict(changed)
    assert described is None or (described.model is None) == bool(described.unsupported)


@given(groups=st.integers(1, 16), tensor_parallel=st.sampled_from([1, 2, 4, 8]))
def test_ranks_hold_every_mamba2_head_and_group_exactly_once_or_the_only_group_each(
    groups: int, tensor_parallel: int
) -> None:
    model = _model({"config": _MAMBA2 | {"n_groups": groups}})
    rank = ranks(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=1,
        data_parallel=1,
        expert_parallel=False,
    )[0]
    mixer = model.layers[0].parts[0]
    if mixer.refusal(rank) is not None:
        assert groups > 1
        assert groups % tensor_parallel
        return
    cache = next(iter(mixer.caches(rank, "backbone.layers.0"))).cache
    assert isinstance(cache, StateCache)
    conv, recurrent = (state.shape for state in cache.states)
    channels, columns = _MAMBA2["expand"] * _MAMBA2["hidden_size"], _MAMBA2["state_size"]
    held = conv[1] - channels // tensor_parallel
    assert held == 2 * columns * max(1, groups // tensor_parallel)
    assert recurrent[0] * tensor_parallel == _MAMBA2["num_heads"]
