"""vLLM 0.32's own plans of the KV cache; from the same layers ours must be equal.

The rows named after a model come from vLLM's specs of that model, block sizes and padding undone;
those named ``mix`` are random layers that vLLM's grouping was asked about.
"""

from typing import Any

import pytest
from cached_layers import recorded_args, recorded_stages
from recorded import rows

from vllm_capacity.predict.kv_cache.plan import KVCachePlan, Planner
from vllm_capacity.predict.kv_cache.planner import make_planner
from vllm_capacity.predict.refusal import Refusal

ROWS = rows("kv_cache_plans")
PLANNED = [row for row in ROWS if row["expected"] is not None]
REFUSED = [row for row in ROWS if row["expected"] is None]


def _planner(row: dict[str, Any]) -> Planner:
    return make_planner(recorded_stages(row), recorded_args(row))


def _plans(row: dict[str, Any]) -> list[tuple[KVCachePlan, dict[str, Any]]]:
    planner = _planner(row)
    ranks = planner.groups[0].layers_per_rank
    each = len(ranks) // len(row["stages"])
    return [
        (planner.plan([size for size in result["available"] for _ in range(each)], "asked"), result)
        for result in row["expected"]["results"]
    ]


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row["id"])
def test_blocks_and_groups_are_those_of_vllm(row: dict[str, Any]) -> None:
    planner, expected = _planner(row), row["expected"]
    each = len(planner.groups[0].layers_per_rank) // len(row["stages"])
    assert list(planner.bytes_per_block()[::each]) == expected["bytes_per_block"]
    if "block_size" in expected:
        assert planner.block_size == expected["block_size"]
        assert planner.kv_cache_dtype == expected["kv_cache_dtype"]
    if expected["groups"] is not None:
        groups = [[group.layers, group.spec.block_size] for group in planner.groups]
        assert groups == expected["groups"]


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row["id"])
def test_tokens_and_concurrency_are_those_of_vllm(row: dict[str, Any]) -> None:
    for plan, result in _plans(row):
        if result.get("refuses"):
            assert plan.error is not None
            assert plan.estimated_max_model_len == result["estimated_max_model_len"]
            continue
        assert plan.error is None
        assert plan.num_blocks == result["num_blocks"]
        assert plan.kv_cache_size_tokens == result["tokens"]
        assert plan.max_concurrency == result["max_concurrency"]
        assert list(plan.blocks_per_max_len_request) == result["blocks_per_request"]
        assert plan.cache_config_block_size == result["cache_config_block_size"]
        assert result["max_model_len"] in {None, plan.max_model_len}


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["id"])
def test_what_vllm_refuses_to_group_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        _planner(row)
