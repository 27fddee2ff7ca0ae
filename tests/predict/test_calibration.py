"""A saved calibration: read back as written, refused with all its faults."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.predict.memory.budget import Estimate
from vllm_capacity.predict.memory.calibration import TERMS, Calibration
from vllm_capacity.units import Bytes

SIZES = st.integers(0, 1 << 40)
ESTIMATES = (
    st.tuples(SIZES, SIZES, SIZES)
    .map(sorted)
    .map(
        lambda s: Estimate(low=Bytes(s[0]), bytes=Bytes(s[1]), high=Bytes(s[2]), origin="measured")
    )
)
CALIBRATIONS = st.builds(
    Calibration,
    source=st.text(min_size=1, max_size=20),
    model=st.none() | st.text(max_size=20),
    vllm_version=st.none() | st.just("0.19.0"),
    engine_args=st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9)),
    **{term: st.none() | ESTIMATES for term in TERMS},
)
SOUND: dict[str, Any] = {
    "schema": 1,
    "source": "vllm.log",
    "terms": {"weights_bytes": {"bytes": 5, "low": 4, "high": 6, "origin": "measured"}},
}


@given(CALIBRATIONS)
def test_a_profile_is_read_back_as_it_was_written(calibration: Calibration) -> None:
    saved = json.loads(json.dumps(calibration.to_json()))
    assert Calibration.from_json("profile.json", saved) == calibration


def test_every_fault_is_told_at_once() -> None:
    broken = {
        "schema": 9,
        "model": 7,
        "colour": "red",
        "terms": {
            "weights_bytes": {"bytes": -1, "low": "few", "high": 6},
            "heat_bytes": {},
        },
    }
    with pytest.raises(InputError) as caught:
        Calibration.from_json("profile.json", broken)
    keys = {fault.key for fault in caught.value.faults}
    assert keys == {
        *("schema", "model", "colour", "terms.heat_bytes"),
        *("terms.weights_bytes.bytes", "terms.weights_bytes.low"),
    }


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, {"schema": 1}, {**SOUND, "schema": True}])
def test_what_is_no_profile_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        Calibration.from_json("profile.json", value)


def test_bounds_hold_the_value_between_them() -> None:
    term = {"bytes": 7, "low": 4, "high": 6, "origin": "measured"}
    with pytest.raises(InputError, match="must be between low = 4 and high = 6"):
        Calibration.from_json("profile.json", {**SOUND, "terms": {"weights_bytes": term}})
