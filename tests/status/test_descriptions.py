"""Every number can be asked what it means and where it comes from."""

import re

import pytest

from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.metric import Metric
from vllm_capacity.observe.metric_names import reading_of
from vllm_capacity.status.descriptions import descriptions
from vllm_capacity.status.values import key_of

VLLM_METRIC = re.compile(r"vllm:\w+")


def is_read(name: str) -> bool:
    """Whether we read it, as it stands or as a histogram."""
    return any(reading_of(name + part) is not None for part in ("", "_sum"))


@pytest.mark.parametrize("metric", CATALOGUE, ids=key_of)
def test_every_number_is_described_by_its_row(metric: Metric) -> None:
    assert descriptions()[key_of(metric)] == {
        "help": metric.help,
        "metric": metric.name,
        "labels": metric.labels,
        "origin": metric.origin,
    }


@pytest.mark.parametrize("metric", CATALOGUE, ids=key_of)
def test_an_origin_is_a_phrase_whose_metrics_we_read(metric: Metric) -> None:
    assert 4 <= len(metric.origin) <= 100
    assert not metric.origin.endswith(".")
    assert all(is_read(name) for name in VLLM_METRIC.findall(metric.origin))


def test_a_metric_that_nobody_reads_would_be_found() -> None:
    assert not is_read("vllm:num_requests_swimming")
    assert len({n for m in CATALOGUE for n in VLLM_METRIC.findall(m.origin)}) > 10


def test_what_is_predicted_comes_from_no_page() -> None:
    predicted = [m for m in CATALOGUE if key_of(m).startswith("predicted_")]
    assert len(predicted) > 8
    assert not [m.name for m in predicted if "vLLM's page" in m.origin]
