"""What the profiling run holds: samplers, experts' workspaces, encoders, repacked weights."""

from typing import Any

import pytest
from recorded import LLAMA_8B, MOE, deployment, rows

from vllm_capacity.predict import MemoryBudget, ModelConfig, VllmVersion, predict
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.memory.encoder import EncoderItem, encoded
from vllm_capacity.predict.memory.samplers import choose_sampler
from vllm_capacity.predict.models.vision.items import encoder_item
from vllm_capacity.predict.parts.experts import workspace_per_expert
from vllm_capacity.units import GIB, MIB

STARTUPS = {row["id"]: row for row in rows("startups")}
V0_19, V0_11 = VllmVersion(0, 19), VllmVersion(0, 11)


def _budget(config: dict[str, Any], **engine_args: Any) -> MemoryBudget:
    budget = predict(deployment(config, max_model_len=8192, **engine_args)).budget
    assert budget is not None
    return budget


@pytest.mark.parametrize(
    ("version", "env", "flashinfer", "capability", "name"),
    [
        (VllmVersion(0, 16), {}, None, (9, 0), "native sort"),
        (VllmVersion(0, 17), {}, None, (9, 0), "triton"),
        (VllmVersion(0, 20), {}, None, (9, 0), "triton"),
        (VllmVersion(0, 21), {}, None, (9, 0), "flashinfer"),
        (VllmVersion(0, 21), {}, False, (9, 0), "triton"),
        (VllmVersion(0, 21), {}, None, (7, 0), "triton"),
        (VllmVersion(0, 11), {"VLLM_USE_FLASHINFER_SAMPLER": "1"}, None, (9, 0), "flashinfer"),
        (None, {"VLLM_USE_FLASHINFER_SAMPLER": "0"}, None, (9, 0), "native sort"),
    ],
)
def test_every_release_has_its_sampler(
    version: VllmVersion | None,
    env: dict[str, str],
    flashinfer: bool | None,
    capability: tuple[int, int],
    name: str,
) -> None:
    chosen = choose_sampler(version, env, flashinfer=flashinfer, capability=capability)
    assert chosen.name == name


@pytest.mark.parametrize(
    ("max_num_seqs", "rows_of_logits"),
    [(1024, 132), (256, 132), (128, 128), (100, 128), (64, 64), (1, 1)],
)
def test_triton_s_sampler_has_a_row_of_logits_for_every_program(
    max_num_seqs: int, rows_of_logits: int
) -> None:
    sampler = choose_sampler(V0_19, {}, flashinfer=None, capability=(9, 0))
    size = sampler.logits_bytes(
        max_num_seqs=max_num_seqs, vocab_size=1000, element_bytes=2, multiprocessors=132
    )
    assert size == 14 * max_num_seqs * 1000 + 4 * rows_of_logits * 1000


@pytest.mark.parametrize(
    ("hidden", "width", "expected"),
    [
        (2048, 1408, 2816 + 2048),  # narrow experts: what they put out is the widest
        (4096, 7168, 14336 + 7168),  # wide ones: gate, up and product
        (5120, 2048, 5120 + 5120),
    ],
)
def test_both_workspaces_of_experts_hold_hidden_states_too(
    hidden: int, width: int, expected: int
) -> None:
    assert workspace_per_expert(hidden, width, gated=True) == expected


def test_the_workspace_of_experts_is_kept_while_the_sampler_runs() -> None:
    budgets = [_budget(MOE, max_num_batched_tokens=tokens) for tokens in (2048, 8192)]
    grown = budgets[1].activation_peak_bytes - budgets[0].activation_peak_bytes
    workspace = 8 * workspace_per_expert(2048, 768, gated=True)
    assert budgets[0].activation_peak_phase == "sampler"
    assert grown == 6144 * 2 * (2048 + workspace)


@pytest.mark.parametrize(
    ("startup", "tokens", "items", "kept_mib"),
    [
        # "profiled with … image items", and what the peaks of the start-ups leave for them
        ("google-gemma-3-4b-it", 256, 32, (183, 194)),
        ("mistralai-mistral-small", 3080, 2, (83, 94)),
        ("ibm-granite-granite-visi", 8289, 1, (35, 46)),
        ("moonshotai-kimi-vl", 1089, 7, (130, 146)),
    ],
)
def test_as_many_items_are_encoded_and_kept_as_the_logs_say(
    startup: str, tokens: int, items: int, kept_mib: tuple[int, int]
) -> None:
    row = next(row for name, row in STARTUPS.items() if startup in name)
    model = ModelConfig.from_dict(row["config"]).model
    assert model is not None
    assert model.encoder_item is not None
    assert model.encoder_item.tokens == tokens
    assert max(8192, tokens) // tokens == items
    kept = encoded(
        model.encoder_item,
        output_elements=model.encoder_elements,
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        element_bytes=2,
        version=V0_19,
    ).kept_bytes
    assert kept_mib[0] <= kept / MIB <= kept_mib[1]


def test_old_releases_pad_every_encoded_item_to_the_budget() -> None:
    item = EncoderItem(tokens=3000, embeddings=3000, input_elements=0)
    kept = [
        encoded(
            item,
            output_elements=5120,
            max_num_batched_tokens=8192,
            max_num_seqs=256,
            element_bytes=2,
            version=version,
        ).kept_bytes
        for version in (V0_11, V0_19)
    ]
    assert kept == [2 * 2 * 5120 * (3000 + 8192), 2 * 2 * 5120 * 3000]


def test_an_encoder_that_is_not_described_has_no_item() -> None:
    config = Fields({"vision_config": {}}, faults=[])
    assert encoder_item("llama.py", config) is None
    assert encoder_item("gemma3_mm.py", Fields({}, faults=[])) is None


@pytest.mark.parametrize("size", ["big", -1, None, True, [], {"height": 3}])
@pytest.mark.parametrize("source", ["gemma3_mm.py", "llava_next.py", "kimi_vl.py", "internvl.py"])
def test_sizes_that_are_none_leave_the_class_s_own(source: str, size: object) -> None:
    odd = {"vision_config": {"image_size": size}, "image_grid_pinpoints": size}
    plain = {"vision_config": {}}
    read = [encoder_item(source, Fields(config, faults=[])) for config in (odd, plain)]
    assert read[0] == read[1]


@pytest.mark.parametrize("source", ["llava_next.py", "kimi_vl.py", "gemma3_mm.py", "mllama4.py"])
def test_images_smaller_than_a_patch_are_no_division_by_nothing(source: str) -> None:
    config = Fields({"vision_config": {"image_size": 1, "patch_size": 4096}}, faults=[])
    item = encoder_item(source, config)
    assert item is None or item.tokens > 0


def test_quantising_at_load_leaves_less_than_was_created() -> None:
    full, online = _budget(LLAMA_8B), _budget(LLAMA_8B, quantization="fp8")
    assert online.weights_bytes < 0.62 * full.weights_bytes
    created = predict(deployment(LLAMA_8B, quantization="fp8")).weights_bytes
    assert created is not None
    assert created[0] > 0.99 * full.weights_bytes


def test_eager_models_are_not_timed_by_a_compiler() -> None:
    few = {"max_num_seqs": 1, "max_num_batched_tokens": 8192}
    compiled = _budget(LLAMA_8B, **few)
    eager = _budget(LLAMA_8B, enforce_eager=True, **few)
    assert compiled.activation_peak_phase == eager.activation_peak_phase == "mlp"
    assert compiled.activation_peak_bytes - eager.activation_peak_bytes == 50 * MIB


def test_more_ranks_hold_more_outside_of_torch() -> None:
    sizes = [_budget(LLAMA_8B, tensor_parallel_size=tp).non_torch_bytes for tp in (1, 2, 4, 8)]
    assert sizes == sorted(sizes)
    assert sizes[1] > sizes[0] + GIB


def test_graphs_grow_with_layers_and_captured_sizes() -> None:
    many, few = (_budget(LLAMA_8B, max_num_seqs=seqs) for seqs in (256, 16))
    assert many.cuda_graph_bytes > few.cuda_graph_bytes > 0
    assert many.cuda_graph_bytes_high - many.cuda_graph_bytes_low < 1.5 * GIB
    assert _budget(LLAMA_8B, enforce_eager=True).cuda_graph_bytes == 0
