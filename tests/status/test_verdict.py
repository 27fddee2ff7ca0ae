"""What is said of an engine: how many more fit, how full it is, whether that was predicted."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from engines import demand, engine
from fleets import MEASURED, NO_PREDICTION, NOW, UP, fleet, recorded, silent, target
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.compare.assessment import EngineAssessment, EngineAssessor
from vllm_capacity.compare.binding_limit import BINDING_LIMITS
from vllm_capacity.compare.engine_state import ENGINE_STATES
from vllm_capacity.compare.fleet import PredictionStatus, SourceHealth
from vllm_capacity.compare.headroom import Headroom, Limits
from vllm_capacity.compare.occupancy import Occupancy
from vllm_capacity.compare.outlook import Outlook
from vllm_capacity.compare.prediction_error import PredictionError
from vllm_capacity.status.fleet_verdict import fleet_verdict
from vllm_capacity.status.verdict import LIMITS, SEVERITY_OF_STATE, engine_verdict

PREDICTED = PredictionStatus(prediction=None, reason="ok", message="planned")


def room(mean: int | None = None, full_length: int | None = None) -> Headroom:
    known = {"observed_mean": mean, "full_length": full_length}
    return Headroom(
        blocks=None,
        tokens=None,
        queued_demand_tokens=None,
        running_requests_limit={},
        requests={basis: n for basis, n in known.items() if n is not None},
    )


def outlook(state: Any = "ok", limit: Any = "none", *, full_in: float | None = math.inf) -> Outlook:
    return Outlook(
        time_to_exhaustion_seconds=full_in,
        binding_limit=limit,
        state=state,
        saturation_ratio=None,
    )


FOOTPRINT = recorded("ramp", 25.0).engines[0].footprint
AS_PREDICTED = Occupancy(62.0, 58.0, 66.0)


def assessment(
    *,
    used: int = 62,
    running: int | None = 10,
    waiting: int | None = 0,
    deferred: int | None = None,
    snapshot: Mapping[str, Any] | None = None,
    **more: Any,
) -> EngineAssessment:
    """An engine of 100 blocks, 62 of them used as predicted, with room for 14 more requests."""
    page = engine(used=used, running=running, waiting=waiting, deferred=deferred)
    page = replace(page, **(snapshot or {}))
    usual: dict[str, Any] = {
        "footprint": FOOTPRINT,
        "occupancy": AS_PREDICTED,
        "occupancy_reason": None,
        "headroom": room(mean=14, full_length=1),
        "demand": demand(),
        "outlook": outlook(),
        "errors": {"kv_cache_tokens": PredictionError(measured=1600, predicted=1600)},
        "limits": Limits(max_num_seqs=256),
    }
    return replace(EngineAssessor().assess(page, None, Limits()), **{**usual, **more})


def error(measured: float, predicted: float) -> dict[str, PredictionError]:
    return {"kv_cache_tokens": PredictionError(measured=measured, predicted=predicted)}


HEADLINES: dict[str, tuple[dict[str, Any], str]] = {
    "room": ({}, "Room for 14 more requests of the usual size"),
    "room for one": ({"headroom": room(1)}, "Room for 1 more request of the usual size"),
    "room for many": (
        {"headroom": room(1289)},
        "Room for about 1,200 more requests of the usual size",
    ),
    "no room": ({"headroom": room(0)}, "No room for another request of the usual size"),
    "no request has finished": (
        {"headroom": room(full_length=5), "footprint": None},
        "Room for 5 more requests of full length",
    ),
    "idle": (
        {"running": 0, "used": 0, "outlook": outlook("idle")},
        "Idle: room for 14 requests of the usual size",
    ),
    "a queue for blocks": (
        {"waiting": 3, "outlook": outlook("saturated", "kv_cache")},
        "No room for another request: 3 wait for KV cache",
    ),
    "a queue of one": (
        {"waiting": 1, "outlook": outlook("saturated", "kv_cache")},
        "No room for another request: 1 waits for KV cache",
    ),
    "a queue for a place": (
        {"waiting": 1200, "outlook": outlook("saturated", "sequences")},
        "No room for another request: 1,200 wait for one of max_num_seqs = 256 places",
    ),
    "a queue for a place among unknown many": (
        {"waiting": 3, "outlook": outlook("saturated", "sequences"), "limits": Limits()},
        "No room for another request: 3 wait for a place in the batch",
    ),
    "a queue that is being let in": (
        {"waiting": 3, "outlook": outlook("ok", "batched_tokens")},
        "Room for 14 more requests of the usual size",
    ),
    "a queue that waits for something else": (
        {"waiting": 3, "deferred": 3, "outlook": outlook("ok", "deferred")},
        "Room for 14 more requests of the usual size",
    ),
    "thrashing": (
        {"waiting": 2, "outlook": outlook("thrashing", "kv_cache")},
        "No room for another request: 2 wait for KV cache",
    ),
    "asleep": (
        {"snapshot": {"sleep_state": "weights_offloaded"}},
        "Asleep: its weights and KV cache are off the GPU",
    ),
    "no pool": (
        {"snapshot": {"total_blocks": None}},
        (
            "How many more requests fit is not known: "
            "its page does not say how many blocks there are"
        ),
    ),
    "no requests": (
        {"running": None, "waiting": None},
        (
            "How many more requests fit is not known: "
            "its page does not say how many requests run, nor how many requests wait"
        ),
    ),
    "nothing": (
        {
            "running": None,
            "waiting": None,
            "snapshot": {"total_blocks": None, "used_blocks": None, "kv_cache_usage_ratio": None},
        },
        "Nothing is known of this engine: its page tells neither blocks nor requests",
    ),
    "no size": (
        {"headroom": room(), "footprint": None, "limits": Limits()},
        (
            "How many more requests fit is not known: no request has finished yet, "
            "and max_model_len is not known"
        ),
    ),
    "no layout": (
        {"headroom": room(), "occupancy": None, "occupancy_reason": "layers differ"},
        "How many more requests fit is not known: layers differ",
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_the_headline_says_how_many_more_fit(case: str) -> None:
    changes, headline = HEADLINES[case]
    assert engine_verdict(assessment(**changes), PREDICTED).headline == headline


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "as predicted": ({}, "KV cache 62 % used, as predicted"),
    "at the edge of the bounds": ({"used": 66}, "KV cache 66 % used, as predicted"),
    "within wide bounds": (
        {"occupancy": Occupancy(60, 45, 75)},
        "KV cache 62 % used, as predicted (45 % to 75 %)",
    ),
    "more than predicted": (
        {"used": 75},
        "KV cache 75 % used, 62 % predicted: 13 blocks more than predicted",
    ),
    "fewer than predicted": (
        {"used": 50},
        "KV cache 50 % used, 62 % predicted: 12 blocks fewer than predicted",
    ),
    "off by one": (
        {"occupancy": Occupancy(61, 61, 61)},
        "KV cache 62 % used, 61 % predicted: 1 block more than predicted",
    ),
    "not predicted": (
        {"occupancy": None, "occupancy_reason": "nothing to start from"},
        "KV cache 62 % used, not predicted: nothing to start from",
    ),
    "said once": (
        {"occupancy": None, "occupancy_reason": "layers differ", "headroom": room()},
        "KV cache 62 % used, not predicted",
    ),
    "nearly nothing used": (
        {"snapshot": {"kv_cache_usage_ratio": 0.001}},
        "KV cache under 1 % used, as predicted",
    ),
    "capacity": ({}, "capacity as predicted"),
    "capacity within half a percent": ({"errors": error(1600, 1607)}, "capacity as predicted"),
    "more capacity": ({"errors": error(1600, 1550)}, "capacity 3.1 % more than predicted"),
    "less capacity": ({"errors": error(1600, 1650)}, "capacity 3.1 % less than predicted"),
    "blocks alone": (
        {"errors": {"kv_cache_blocks": PredictionError(measured=100, predicted=90)}},
        "capacity 10.0 % more than predicted",
    ),
    "next limit, cache": ({}, "next limit: KV cache"),
    "next limit, places": (
        {"limits": Limits(max_num_seqs=24)},
        "next limit: max_num_seqs",
    ),
    "binding, cache": ({"outlook": outlook("tight", "kv_cache")}, "binding limit: KV cache"),
    "binding, places": ({"outlook": outlook("ok", "sequences")}, "binding limit: max_num_seqs"),
    "binding, tokens": (
        {"outlook": outlook("ok", "batched_tokens")},
        "binding limit: max_num_batched_tokens",
    ),
    "deferred": (
        {"outlook": outlook("ok", "deferred")},
        "binding limit: none, those that wait are deferred",
    ),
    "a queue that the headline does not tell": (
        {"waiting": 3, "outlook": outlook("ok", "batched_tokens")},
        "3 requests wait",
    ),
    "preemptions": (
        {"demand": demand(preemptions=12, preempted=2)},
        "12 preemptions in the last minute, 2 preempted requests wait",
    ),
    "a preempted request": ({"demand": demand(preempted=1)}, "1 preempted request waits"),
    "filling up": ({"outlook": outlook(full_in=545)}, "full in about 9 min at this rate"),
    "full": ({"used": 100, "outlook": outlook(full_in=0)}, "no block is free"),
    "promised more than there is": (
        {"demand": demand(committed=108)},
        "the requests already admitted will need 108 % of the pool: preemption is ahead",
    ),
    "promised more, and preempting": (
        {"demand": demand(committed=108, preemptions=3), "waiting": 1},
        "running and queued requests will need 108 % of the pool: more preemption is ahead",
    ),
    "the usual size is not known": (
        {"headroom": room(full_length=5), "footprint": None},
        "no request has finished yet to tell the usual size",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_part_says(case: str) -> None:
    changes, part = PARTS[case]
    assert part in engine_verdict(assessment(**changes), PREDICTED).parts


SILENT_ON: dict[str, tuple[dict[str, Any], str]] = {
    "a cache that does not fill": ({}, "full in"),
    "a time that is not known": ({"outlook": outlook(full_in=None)}, "full in"),
    "a time that has come, of a pool with room": ({"outlook": outlook(full_in=0)}, "full|free"),
    "no preemption": ({}, "preempt"),
    "demand that fits": ({"demand": demand(committed=100)}, "of the pool"),
    "a limit that is not known": ({"outlook": outlook(limit=None)}, "limit"),
    "what comes next of a size that is not known": ({"headroom": room()}, "next limit"),
    "a queue that is empty": ({}, "wait"),
}


@pytest.mark.parametrize("case", SILENT_ON)
def test_nothing_is_said_of(case: str) -> None:
    changes, word = SILENT_ON[case]
    assert not re.search(word, engine_verdict(assessment(**changes), PREDICTED).sentence)


REASONS = {
    "no_config": "capacity not predicted: no config.json",
    "bad_config": "capacity not predicted: its config.json cannot be used",
    "bad_arguments": "capacity not predicted: an engine argument cannot be used",
    "unsupported": "capacity not predicted: the model is not described",
    "no_memory": "capacity not predicted: neither a GPU nor a cache size is known",
    "does_not_fit": "capacity not predicted: by its arguments it could not have started",
    "override": "capacity was set by hand",
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_capacity_that_is_not_predicted_has_a_reason(reason: str) -> None:
    status = replace(NO_PREDICTION, reason=reason)
    assert REASONS[reason] in engine_verdict(assessment(errors={}), status).parts


def test_every_limit_has_a_word_and_every_state_a_severity() -> None:
    assert set(LIMITS) == set(BINDING_LIMITS) - {"none"}
    assert set(SEVERITY_OF_STATE) == set(ENGINE_STATES)


def test_the_whole_sentence_reads_as_one() -> None:
    one = assessment(outlook=outlook(full_in=545))
    assert engine_verdict(one, PREDICTED).sentence == (
        "Room for 14 more requests of the usual size; KV cache 62 % used, as predicted; "
        "capacity as predicted; next limit: KV cache; full in about 9 min at this rate."
    )


UNKNOWN = st.sampled_from(
    [
        {"running": None},
        {"waiting": None},
        {"snapshot": {"total_blocks": None, "used_blocks": None}},
        {"snapshot": {"kv_cache_usage_ratio": None, "used_blocks": None}},
        {"headroom": room()},
        {"occupancy": None, "occupancy_reason": "nobody knows"},
        {"errors": {}},
        {"footprint": None},
        {"limits": Limits()},
        {"outlook": outlook("unknown", None, full_in=None)},
    ]
)


@given(st.lists(UNKNOWN, max_size=6), st.integers(1, 100))
def test_what_is_unknown_is_never_told_as_nothing(unknown: list[dict[str, Any]], used: int) -> None:
    changes: dict[str, Any] = {}
    for each in unknown:
        merged = {**changes.get("snapshot", {}), **each.get("snapshot", {})}
        changes |= {**each, **({"snapshot": merged} if merged else {})}
    verdict = engine_verdict(assessment(used=used, **changes), PREDICTED)
    sentence = verdict.sentence
    assert not re.search(r"\b0\b|None|nan|inf\b", sentence)
    assert re.match(r"Room|No room|Idle|Nothing is known|How many more .* not known", sentence)
    assert sentence.endswith(".")
    assert all(part and not part.endswith((".", ";")) for part in verdict.parts)
    assert len(set(verdict.parts)) == len(verdict.parts)


#: Moments of recordings: what the engine was doing, and what must be in its verdict.
RECORDED: list[tuple[str, float, str]] = [
    ("ramp", 1.0, r"Idle: room for \d+ requests of the usual size"),
    ("ramp", 25.0, r"Room for \d+ more .*KV cache 60 % used, as predicted"),
    ("ramp", 50.0, r"No room .*1 waits for KV cache.*binding limit: KV cache.*full in about \d+ s"),
    ("ramp", 125.0, r"No room .*178 wait for KV cache.*\d+ preemptions in the last minute"),
    ("ramp", 126.0, r"running and queued requests will need 2\d\d % of the pool"),
    ("steady", 75.0, r"Room for 26 more .*KV cache 7 % used, as predicted"),
    ("prefix", 60.0, r"Room for 10 more .*KV cache 58 % used, as predicted"),
    ("restart", 139.0, r"Idle: room for 5 requests of full length; no request has finished yet"),
    ("dp-ramp", 60.0, r"No room for another request: 2 wait for KV cache"),
]


@pytest.mark.parametrize(("trace", "moment", "said"), RECORDED)
def test_of_a_recorded_moment_it_says(trace: str, moment: float, said: str) -> None:
    one = recorded(trace, moment)
    sentence = engine_verdict(one.engines[0], one.prediction).sentence
    assert re.search(said, sentence), sentence


def test_an_engine_of_which_only_the_page_is_known_says_what_is_missing() -> None:
    one = recorded("swa-ramp", 30.0, blind=True)
    said = engine_verdict(one.engines[0], one.prediction).sentence
    assert "only the model's config.json says which" in said
    assert "capacity not predicted: no config.json" in said


def test_the_verdict_of_one_engine_is_that_of_the_fleet() -> None:
    one = recorded("ramp", 25.0)
    verdict = fleet_verdict(fleet(one), now=NOW)
    assert verdict.sentence == engine_verdict(one.engines[0], one.prediction).sentence
    assert verdict.severity == "ok"


def test_a_fleet_is_told_by_its_hottest_engine_first() -> None:
    published = fleet(recorded("ramp", 25.0), recorded("ramp", 80.0, name="b:8000"))
    verdict = fleet_verdict(published, now=NOW)
    assert verdict.severity == "critical"
    assert verdict.sentence.startswith(
        "1 of 2 engines needs attention; hottest is b:8000, engine 0: No room"
    )


def test_a_fleet_with_room_says_so_and_who_is_hottest() -> None:
    published = fleet(recorded("steady", 75.0), recorded("ramp", 25.0, name="b:8000"))
    verdict = fleet_verdict(published, now=NOW)
    assert verdict.severity == "ok"
    assert verdict.sentence.startswith("None of 2 engines needs attention; hottest is b:8000")


def down(name: str, **more: Any) -> Any:
    return replace(silent(name), **more)


FLEETS: dict[str, tuple[list[Any], str, str]] = {
    "nobody": ([], "unknown", "There is no target."),
    "one that never answered": (
        [silent("c:1", for_seconds=None)],
        "unknown",
        "c:1 has never answered: connection refused.",
    ),
    "one that is not asked yet": (
        [down("c:1", health={"vllm": SourceHealth()})],
        "unknown",
        "c:1 has not answered yet.",
    ),
    "two that are silent": (
        [silent("c:1"), silent("d:2", for_seconds=20.0)],
        "unknown",
        (
            "c:1 has not answered for 4 min: connection refused; "
            "d:2 has not answered for 20 s: connection refused."
        ),
    ),
    "many that are silent": (
        [silent(f"c:{n}") for n in range(9)],
        "unknown",
        "9 targets do not answer: c:0, c:1, c:2 and others.",
    ),
}


@pytest.mark.parametrize("case", FLEETS)
def test_who_does_not_answer_is_named_with_since_when_and_why(case: str) -> None:
    targets, severity, sentence = FLEETS[case]
    verdict = fleet_verdict(fleet(*targets), now=NOW)
    assert (verdict.severity, verdict.sentence) == (severity, sentence)


def test_the_engine_beside_a_silent_target_is_told_first() -> None:
    said = fleet_verdict(fleet(target("a:1"), silent("c:3")), now=NOW).sentence
    assert re.match(r"a:1, engine 0: .*; c:3 has not answered for 4 min", said)


def test_numbers_of_an_earlier_page_are_said_to_be_old() -> None:
    failed = UP.failed(reason="timeout", message="no answer within 10 s", seconds=10.0)
    said = fleet_verdict(fleet(target("a:1", health={"vllm": failed})), now=NOW + 8.0).sentence
    assert said.endswith("numbers of a:1 are 10 s old: no answer within 10 s.")


def test_what_a_log_measured_changes_no_word_of_it() -> None:
    one = recorded("ramp", 25.0)
    measured = replace(one, measured=MEASURED)
    assert fleet_verdict(fleet(one), now=NOW) == fleet_verdict(fleet(measured), now=NOW)
