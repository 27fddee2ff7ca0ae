"""The status document: equal to /metrics, silent on what is unknown."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from fleets import MEASURED, NOW, PAGE, UP, fleet, known, on_gpu, recorded, silent, target
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.collector import CapacityCollector
from vllm_capacity.status.document import EVERYTHING, Selection, status_document
from vllm_capacity.status.values import STATE_SETS, is_in_values, key_of, values_of

#: Scrapes of recordings in which much is happening.
MOMENTS = [("ramp", 25.0), ("ramp", 80.0), ("longdecode", 120.0), ("dp-ramp", 60.0)]
BUSY = ("ramp", 80.0)


def document(published: FleetAssessment, selection: Selection = EVERYTHING) -> dict[str, Any]:
    """The document as its reader gets it."""
    made = status_document(
        published,
        sequence=7,
        generated_timestamp_seconds=NOW,
        scrape_interval_seconds=5.0,
        selection=selection,
    )
    return json.loads(json.dumps(made, allow_nan=False))  # type: ignore[no-any-return]


def engines(doc: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {(t["target"], e["engine"]): e for t in doc["targets"] for e in t["engines"]}


def exported(published: FleetAssessment) -> dict[tuple[str, str | None, tuple[str, ...]], float]:
    """Every series of /metrics, by metric, engine and its row's own labels."""
    registry = CollectorRegistry()
    registry.register(CapacityCollector(lambda: published, with_target=False))
    rows = {row.name: row for row in CATALOGUE}
    return {
        (key_of(rows[sample.name]), sample.labels.get("engine"), _own(rows, sample)): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.name in rows and is_in_values(rows[sample.name])
    }


def _own(rows: Mapping[str, Any], sample: Any) -> tuple[str, ...]:
    return tuple(sample.labels[label] for label in rows[sample.name].labels)


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    def leaves(value: Any, labels: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not isinstance(value, Mapping):
            yield labels, value
            return
        for label, inner in value.items():
            yield from leaves(inner, (*labels, label))

    for key, value in values.items():
        if key not in STATE_SETS:
            yield from ((key, labels, leaf) for labels, leaf in leaves(value, ()))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_its_numbers_are_those_of_metrics_and_all_of_them(moment: tuple[str, float]) -> None:
    published = on_gpu(recorded(*moment))
    doc = document(published)
    (of_target,) = doc["targets"]
    shown = {
        (key, engine, labels): value
        for engine, values in [
            (None, of_target["values"]),
            *((e["engine"], e["values"]) for e in of_target["engines"]),
        ]
        for key, labels, value in flat(values)
    }
    numbers = {key: float(str(value)) for key, value in shown.items()}
    series = exported(published)
    assert numbers == {key: value for key, value in series.items() if key[0] not in STATE_SETS}
    assert len(numbers) > 60


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_of_a_state_set_it_says_the_state(moment: tuple[str, float]) -> None:
    published = fleet(recorded(*moment))
    series = exported(published)
    for engine in document(published)["targets"][0]["engines"]:
        for name in STATE_SETS:
            assert series[name, engine["engine"], (engine["values"][name],)] == 1


def test_every_state_set_has_one_label_and_no_other_row_is_one() -> None:
    of_engines = {key_of(row): row for row in CATALOGUE if row.scope == "engine"}
    assert all(len(of_engines[name].labels) == 1 for name in STATE_SETS)
    looks_like_one = {n for n, row in of_engines.items() if row.help.startswith("1 for ")}
    assert looks_like_one == STATE_SETS


def test_what_is_unknown_is_absent_and_never_nothing() -> None:
    lines = [line for line in PAGE.splitlines() if "num_requests" not in line]
    doc = document(fleet(target("a", (1.0, "\n".join(lines) + "\n"))))
    (engine,) = engines(doc).values()
    for key in ("running_requests", "waiting_requests", "headroom_requests", "kv_cache_used_bytes"):
        assert key not in engine["values"]
    assert engine["values"]["kv_cache_used_blocks"] == 13
    assert engine["state"] == engine["severity"] == "unknown"
    assert "vllm:num_requests_running" in doc["targets"][0]["missing_metrics"]


def test_a_cache_that_does_not_fill_is_full_in_infinity() -> None:
    (engine,) = engines(document(fleet(target()))).values()
    assert engine["values"]["time_to_exhaustion_seconds"] == "+Inf"


def test_a_row_that_breaks_costs_its_own_value_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> dict[tuple[str, ...], float]:
        raise ZeroDivisionError

    (one,) = target().engines
    whole = values_of("engine", one)
    rows = tuple(
        replace(row, read=broken) if key_of(row) == "kv_cache_used_blocks" else row
        for row in CATALOGUE
    )
    monkeypatch.setattr("vllm_capacity.status.values.CATALOGUE", rows)
    del whole["kv_cache_used_blocks"]
    assert values_of("engine", one) == whole


def test_a_silent_target_has_no_engines_and_says_since_when_and_why() -> None:
    doc = document(fleet(target(), silent()))
    down = doc["targets"][1]
    (vllm,) = down["sources"]
    assert down["engines"] == []
    assert vllm == {
        "source": "vllm",
        "up": False,
        "last_success_timestamp_seconds": NOW - 240,
        "last_error": "connection refused",
        "last_reason": "connect",
        "failed_collections": 1,
    }
    assert "c:8000 has not answered for 4 min: connection refused" in doc["verdict"]["sentence"]


def test_each_memory_term_stands_beside_what_the_log_says_of_it() -> None:
    (of_target,) = document(on_gpu(recorded(*BUSY)))["targets"]
    terms = {term["term"]: term for term in of_target["memory_terms"]}
    assert list(terms) == ["weights", "activation_peak", "non_torch", "cuda_graph", "kv_cache"]
    weights = terms["weights"]
    assert weights["reported_bytes"] == 1 << 30
    assert weights["predicted_bytes"] == of_target["values"]["predicted_weights_bytes"]
    assert weights["predicted_low_bytes"] <= weights["predicted_bytes"]
    assert weights["predicted_bytes"] <= weights["predicted_high_bytes"]
    off = (weights["reported_bytes"] - weights["predicted_bytes"]) / weights["reported_bytes"]
    assert math.isclose(weights["error_ratio"], off)
    assert terms["non_torch"]["reported_bytes"] is None
    assert terms["non_torch"]["error_ratio"] is None
    assert terms["kv_cache"]["origin"] == "num_gpu_blocks_override"
    assert "predicted_low_bytes" not in terms["kv_cache"]
    assert terms["kv_cache"]["reported_bytes"] is None  # the log tells what was left for it


def test_a_cache_that_takes_what_is_left_has_bounds() -> None:
    plain = re.sub(r'(kv_cache_memory_bytes|num_gpu_blocks_override)="\d+"', r'\1="None"', PAGE)
    published = fleet(target("a", (1.0, plain), facts=known(), measured=MEASURED))
    *_, term = document(published)["targets"][0]["memory_terms"]
    assert term["term"] == "kv_cache"
    assert term["predicted_low_bytes"] < term["predicted_bytes"] < term["predicted_high_bytes"]
    assert term["reported_bytes"] == 70 << 30
    assert term["error_ratio"] is not None


def test_an_argument_is_told_with_who_denies_it() -> None:
    args = {"max_num_seqs": 48}
    facts = known(log_args=type(known().given_args).from_mapping({"max_num_seqs": 64}))
    (of_target,) = document(fleet(target("a", (1.0, PAGE), facts=facts)))["targets"]
    told = {each["argument"]: each for each in of_target["arguments"]}
    assert told["max_num_seqs"] == {
        "argument": "max_num_seqs",
        "value": str(args["max_num_seqs"]),
        "source": "flag",
        "denied_by": {"log": "64"},
    }
    assert "denied_by" not in told["gpu_memory_utilization"]


def test_a_gpu_shows_where_its_memory_goes_and_whose_it_is() -> None:
    (gpu,) = document(on_gpu(recorded(*BUSY)))["gpus"]
    assert gpu["name"] == "NVIDIA H100 80GB HBM3"
    assert sum(gpu["held"].values()) == gpu["used_bytes"]
    assert gpu["reported"]["weights"] == 1 << 30
    assert gpu["engines"] == [["a:8000", "0"]]
    assert gpu["attribution"] == [
        {"target": "a:8000", "method": "pid", "engine_bytes": 72 << 30},
    ]


def test_a_source_is_stale_after_three_intervals() -> None:
    doc = document(fleet(target()))
    assert doc["stale_after_seconds"] == 3 * doc["scrape_interval_seconds"] == 15.0


SELECTIONS: dict[str, tuple[Selection, list[tuple[str, str]]]] = {
    "everything": (EVERYTHING, [("a:1", "0"), ("b:2", "0"), ("b:2", "1")]),
    "a target": (Selection(targets=frozenset({"b:2"})), [("b:2", "0"), ("b:2", "1")]),
    "an engine": (Selection(engines=frozenset({"1"})), [("b:2", "1")]),
    "both": (Selection(targets=frozenset({"a:1"}), engines=frozenset({"0"})), [("a:1", "0")]),
    "two targets": (
        Selection(targets=frozenset({"a:1", "b:2"}), engines=frozenset({"0"})),
        [("a:1", "0"), ("b:2", "0")],
    ),
    "one that is not there": (Selection(targets=frozenset({"z"})), []),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_leaves_the_rest_out(name: str) -> None:
    selection, left = SELECTIONS[name]
    published = fleet(target("a:1"), recorded("dp-ramp", 30.0, name="b:2"))
    doc = document(published, selection)
    assert list(engines(doc)) == left
    assert {t["target"] for t in doc["targets"]} == {name for name, _ in left}


def test_a_selection_keeps_a_silent_target_that_is_asked_for() -> None:
    published = fleet(target("a:1"), silent("c:3"))
    doc = document(published, Selection(targets=frozenset({"c:3"})))
    assert [t["target"] for t in doc["targets"]] == ["c:3"]
    assert doc["verdict"]["severity"] == "unknown"


def test_a_selection_keeps_the_gpus_of_what_is_left() -> None:
    published = on_gpu(recorded(*BUSY))
    assert document(published, Selection(targets=frozenset({"a:8000"})))["gpus"]
    assert not document(published, Selection(targets=frozenset({"elsewhere"})))["gpus"]


LINES = [line for line in PAGE.splitlines() if re.match(r"vllm:(?!.*_bucket)", line)]
NUMBERS = st.sampled_from(["0", "1", "3", "0.5", "1e9", "1e300", "-1", "NaN", "+Inf"])


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """A page of which lines are lost, and others say anything."""
    lost = draw(st.sets(st.integers(0, len(LINES) - 1), max_size=40))
    other = draw(st.dictionaries(st.integers(0, len(LINES) - 1), NUMBERS, max_size=40))
    kept = [
        f"{line.rsplit(' ', 1)[0]} {other[i]}" if i in other else line
        for i, line in enumerate(LINES)
        if i not in lost
    ]
    return "\n".join(kept) + "\n"


@settings(max_examples=100, deadline=None)
@given(mangled(), mangled())
def test_whatever_a_page_says_the_document_is_json_and_says_something(
    first: str, second: str
) -> None:
    published = fleet(target("a", (1.0, first), (6.0, second), facts=known()))
    for engine in engines(document(published)).values():
        assert engine["verdict"]["headline"]
        assert not re.search(r"\b(None|nan|inf)\b", engine["verdict"]["sentence"])
        assert engine["severity"] in {"ok", "unknown", "warning", "critical"}


def test_the_health_of_a_source_that_works_is_told() -> None:
    published = fleet(target("a", (1.0, PAGE), health={"vllm": UP, "config": UP}))
    sources = document(published)["targets"][0]["sources"]
    assert [(s["source"], s["up"], s["last_error"]) for s in sources] == [
        ("vllm", True, None),
        ("config", True, None),
    ]
