"""vLLM 0.32's own answers for 110 deployments; what is called supported must be equal."""

import math
import sys
from collections import Counter
from typing import Any

import pytest
from answered import differences, predicted
from recorded import rows

CASES = rows("oracle")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_every_deployment_is_supported_and_predicted_exactly(case: dict[str, Any]) -> None:
    prediction = predicted(case)
    assert prediction.supported, prediction.reason
    assert differences(case, prediction) == []


def test_the_table_of_classes_has_no_inexact_answer(capsys: pytest.CaptureFixture[str]) -> None:
    cases, supported, exact = Counter[str](), Counter[str](), Counter[str]()
    for case in CASES:
        prediction = predicted(case)
        cases[case["cls"]] += 1
        supported[case["cls"]] += prediction.supported
        exact[case["cls"]] += prediction.supported and not differences(case, prediction)
    lines = [f"{'class':<22}{'cases':>6}{'supported':>11}{'exact':>7}"]
    lines += [
        f"{cls:<22}{cases[cls]:>6}{supported[cls]:>11}{exact[cls]:>7}" for cls in sorted(cases)
    ]
    lines.append(f"{'all':<22}{cases.total():>6}{supported.total():>11}{exact.total():>7}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert exact == supported


def test_bytes_of_a_block_are_those_that_vllm_allocates() -> None:
    for case in CASES:
        prediction = predicted(case)
        if prediction.supported and prediction.resolved is not None:
            tp = prediction.resolved.tensor_parallel_size
            expected = case["expected"]["bytes_per_block"]
            assert list(prediction.plans[0].bytes_per_block[::tp]) == expected, case["id"]


def test_concurrency_agrees_to_six_significant_digits() -> None:
    for case in CASES:
        prediction = predicted(case)
        for plan, result in zip(prediction.plans, case["expected"]["results"], strict=False):
            if plan.max_concurrency is not None:
                assert math.isclose(
                    plan.max_concurrency, result["max_concurrency"], rel_tol=1e-6
                ), case["id"]
