"""Recordings of a real vLLM on the screen: what it shows is what the document holds."""

from __future__ import annotations

import re

import pytest
from played_screen import pictured, played

from vllm_capacity.top.words import count, share

MOMENTS = [
    ("steady", 90.0),
    ("ramp2", 150.0),
    ("burst", 355.0),
    ("aborts", 120.0),
    ("prefix", 90.0),
    ("restart", 120.0),
    ("dp-ramp", 100.0),
    ("swa-ramp", 100.0),
]


@pytest.mark.parametrize(("trace", "until"), MOMENTS)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_numbers_of_the_screen_are_those_of_the_document(
    trace: str, until: float, width: int
) -> None:
    document, _ = played(trace, until)
    engines = document["targets"][0]["engines"]
    text = " ".join(" ".join(pictured(trace, until, width)).split())
    shown = next(e for e in engines if e["verdict"]["headline"] in text)
    values = shown["values"]
    usage, blocks = values["kv_cache_usage_ratio"], values["kv_cache_blocks"]
    assert f"used {share(usage)} of {count(blocks)} blocks" in text
    should = values.get("predicted_kv_cache_used_blocks")
    said = "unknown" if should is None else share(should / blocks)
    assert f"predicted {said}" in text
    assert shown["state"].upper() in text
    for engine in engines if len(engines) > 1 else ():
        assert f"engine {engine['engine']}" in text


def test_a_burst_is_seen_as_it_came_and_what_it_did_is_marked() -> None:
    lines = pictured("burst", 355.0)
    marks = next(line for line in lines if re.fullmatch(r"\s+[pq ]{20,}", line))
    axis = lines[lines.index(marks) + 1]
    assert marks.count("p") > 20
    assert "p preemption" in axis
    assert "q queue" in axis


def test_a_restart_is_marked() -> None:
    lines = pictured("restart", 180.0)
    assert any("r restart" in line for line in lines)
