"""vLLM 0.32's own answers for latent attention, states, delta nets and wrappers around them.

``more_oracle_b.jsonl.xz`` has the form of ``oracle.jsonl.xz``. Its configurations are publishers'
files, or published shapes written from memory; arguments and GPUs are varied so that rules meet
each other. A case that vLLM refused as a whole holds the refusal in place of its answers.
"""

from typing import Any

import pytest
from answered import differences, predicted
from recorded import rows

CASES = rows("more_oracle_b")
ANSWERED = [case for case in CASES if "expected" in case]
REFUSED = [case for case in CASES if "expected" not in case]


def _id(case: dict[str, Any]) -> str:
    return str(case["id"])


@pytest.mark.parametrize("case", ANSWERED, ids=_id)
def test_a_deployment_is_predicted_exactly(case: dict[str, Any]) -> None:
    prediction = predicted(case)
    assert prediction.supported, prediction.reason
    assert differences(case, prediction) == []


@pytest.mark.parametrize("case", REFUSED, ids=_id)
def test_what_vllm_refuses_is_refused(case: dict[str, Any]) -> None:
    prediction = predicted(case)
    assert not prediction.supported
    assert prediction.reason is not None
    assert prediction.reason.startswith("vLLM refuses to start")
