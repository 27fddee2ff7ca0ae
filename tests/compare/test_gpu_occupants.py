"""Which rank is on which GPU, and what is known of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from engines import engine
from gpus import attribution, gpu, mig

from vllm_capacity.compare.assessment import EngineAssessor
from vllm_capacity.compare.fleet import PredictionStatus, TargetAssessment
from vllm_capacity.compare.gpu_attribution import GpuAttribution
from vllm_capacity.compare.gpu_occupants import device_of, occupants_of
from vllm_capacity.compare.headroom import Limits
from vllm_capacity.deployment import gpu_of_reading
from vllm_capacity.observe.measured_memory import (
    MeasuredMemory,
    MeasuredRank,
    MeasuredTerm,
    measured_memory,
)
from vllm_capacity.observe.startup_log import read_startup_log
from vllm_capacity.predict import (
    Deployment,
    EngineArgs,
    ModelConfig,
    Prediction,
    gpu_named,
    predict,
)
from vllm_capacity.units import GIB, Bytes, Tokens

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def predicted(**arguments: Any) -> Prediction:
    model = ModelConfig.from_dict(CONFIG)
    args = EngineArgs.from_mapping(arguments)
    return predict(
        Deployment(model=model, engine_args=args, gpu=gpu_named("h100-80gb"), vllm_version=None)
    )


def term(gib: float) -> MeasuredTerm:
    return MeasuredTerm(bytes=Bytes(round(gib * GIB)))


def rank(dp: int, pp: int, tp: int, weights: float | None) -> MeasuredRank:
    return MeasuredRank(
        data_parallel_rank=dp,
        pipeline_parallel_rank=pp,
        tensor_parallel_rank=tp,
        weights=None if weights is None else term(weights),
    )


def target(
    *attributions: GpuAttribution,
    engines: tuple[str, ...] = ("0",),
    measured: MeasuredMemory | None = None,
    prediction: Prediction | None = None,
    total: int = 100,
    sleep_state: str | None = None,
) -> TargetAssessment:
    snapshots = (
        replace(engine(total=total), engine=label, sleep_state=sleep_state) for label in engines
    )
    return TargetAssessment(
        target="a",
        url="http://engine:8000",
        engines=tuple(EngineAssessor().assess(one, None, Limits()) for one in snapshots),
        prediction=PredictionStatus(prediction=prediction, reason="ok", message=""),
        measured=measured,
        gpus=attributions,
    )


def weights(target: TargetAssessment) -> list[float | None]:
    found = [one.measured.weights_bytes for one in occupants_of(target)]
    return [None if size is None else size / GIB for size in found]


RANKS: Mapping[str, tuple[list[tuple[int, int, int]], tuple[tuple[str, ...], ...], list[float]]] = {
    "tensor": ([(0, 0, 0), (0, 0, 1)], (("0",), ("0",)), [1, 2]),
    "pipeline of tensor": (
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)],
        (("0",), ("0",), ("0",), ("0",)),
        [1, 2, 3, 4],
    ),
    "data": ([(0, 0, 0), (1, 0, 0)], (("0",), ("1",)), [1, 2]),
    "data of tensor, apart": (
        [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)],
        (("0",), ("1",), ("0",), ("1",)),
        [1, 3, 2, 4],
    ),
}


@pytest.mark.parametrize("parallel", RANKS)
def test_an_engines_ranks_take_its_gpus_in_order(parallel: str) -> None:
    places, engines, expected = RANKS[parallel]
    measured = MeasuredMemory(
        tightest=MeasuredRank(),
        ranks=tuple(rank(*place, float(i + 1)) for i, place in enumerate(places)),
    )
    where = [attribution(9.0, 0.0, index=i, engines=labels) for i, labels in enumerate(engines)]
    labels = tuple(sorted({label for labels in engines for label in labels}))
    assert weights(target(*reversed(where), engines=labels, measured=measured)) == expected


def test_what_a_log_tells_once_is_told_of_every_rank() -> None:
    measured = MeasuredMemory(
        tightest=rank(0, 0, 0, 7.5), ranks=(rank(0, 0, 0, 7.5), rank(0, 1, 0, None))
    )
    both = target(attribution(9.0, 0.0), attribution(9.0, 0.0, index=1), measured=measured)
    assert weights(both) == [7.5, 7.5]


@pytest.mark.parametrize(
    ("bytes_held", "engines", "is_here"),
    [
        (9.0, ("0",), True),
        (9.0, (), True),
        (0.0, (), False),
        (None, (), False),
        (None, ("0",), True),
    ],
)
def test_a_deployment_is_where_it_holds_memory_or_is_known_to_be(
    bytes_held: float | None, engines: tuple[str, ...], is_here: bool
) -> None:
    where = attribution(bytes_held, None, engines=engines)
    assert bool(occupants_of(target(where))) is is_here


def test_stages_of_a_pipeline_are_predicted_each_for_itself() -> None:
    prediction = predicted(pipeline_parallel_size=2, tensor_parallel_size=1)
    first, last = occupants_of(
        target(attribution(9.0, 0.0), attribution(9.0, 0.0, index=1), prediction=prediction)
    )
    assert [one.predicted.weights_bytes for one in (first, last)] == [
        budget.weights_bytes for budget in prediction.budgets
    ]
    assert first.predicted.activation_peak_bytes != last.predicted.activation_peak_bytes
    (plan,) = prediction.plans
    assert first.predicted.kv_cache_bytes == (plan.num_blocks or 0) * plan.bytes_per_block[0]


def test_without_a_log_the_cache_is_as_large_as_the_blocks_that_the_engine_reports() -> None:
    (one,) = occupants_of(target(attribution(9.0, 0.0), prediction=predicted(), total=1000))
    assert one.measured.kv_cache_bytes == 1001 * 2 * 32 * 8 * 128 * 16 * 2


@pytest.mark.parametrize(
    ("override", "tokens", "kv_cache"),
    [(None, 16016, 50.0), (1001, 16016, 1.955), (1001, 400_000, 50.0)],
    ids=["as much as is left", "set by hand", "another start-up's log"],
)
def test_a_log_tells_the_caches_size_unless_its_blocks_were_set_by_hand(
    override: int | None, tokens: int, kv_cache: float
) -> None:
    arguments = {} if override is None else {"num_gpu_blocks_override": override}
    measured = MeasuredMemory(
        tightest=MeasuredRank(kv_cache=term(50.0)), ranks=(), kv_cache_size_tokens=Tokens(tokens)
    )
    (one,) = occupants_of(
        target(
            attribution(9.0, 0.0), prediction=predicted(**arguments), measured=measured, total=1000
        )
    )
    assert (one.measured.kv_cache_bytes or 0) / GIB == pytest.approx(kv_cache, abs=0.001)


def test_of_an_engine_that_does_not_answer_only_its_log_tells() -> None:
    measured = MeasuredMemory(tightest=rank(0, 0, 0, 15.0), ranks=())
    (one,) = occupants_of(
        target(attribution(9.0, 0.0), engines=(), prediction=predicted(), measured=measured)
    )
    assert one.expected == {"weights": 15 * GIB}


@pytest.mark.parametrize(
    ("state", "is_awake"),
    [("awake", True), ("weights_offloaded", False), ("discard_all", False), (None, True)],
)
def test_an_engine_sleeps_where_it_says_so(state: str | None, is_awake: bool) -> None:
    (one,) = occupants_of(target(attribution(9.0, 0.0), sleep_state=state))
    assert one.is_awake is is_awake


def test_the_context_is_what_was_held_at_the_engines_first_look() -> None:
    line = (
        "Free memory on device (77.66/79.19 GiB) on startup. "
        "Desired GPU memory utilization is (0.95, 75.23 GiB). Actual usage is 7.12 GiB for"
    )
    log = read_startup_log([line])
    (one,) = occupants_of(target(attribution(9.0, 0.0), measured=measured_memory(log)))
    assert (one.measured.context_bytes or 0) / GIB == pytest.approx(1.53)
    assert (one.measured.total_bytes or 0) / GIB == pytest.approx(79.19)


def test_a_deployment_is_predicted_for_the_gpu_or_instance_that_it_is_on() -> None:
    divided = gpu(50.0, index=2, mig=(mig(1, 30.0), mig(2, 20.0)))
    gpus = (gpu(1.0), gpu(60.0, index=1), divided)
    elsewhere = attribution(0.0, 1.0, engines=())
    on_gpu = target(elsewhere, attribution(60.0, 0.0, index=1))
    assert device_of(on_gpu, gpus) == (gpus[1], None)
    on_instance = target(elsewhere, attribution(20.0, 0.0, index=2, mig_uuid="MIG-2"))
    device = device_of(on_instance, gpus)
    assert device == (divided, divided.mig_instances[1])
    described = gpu_of_reading(*device)
    assert described is not None
    assert described.total_memory_bytes == round(39.5 * GIB)
    assert device_of(target(elsewhere), gpus) is None
