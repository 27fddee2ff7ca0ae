"""What the autoscalers ask for is there, and comes to the right number of replicas."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from manifests import KUSTOMIZE

from promql_names import LABELS_BY_METRIC, grouping_labels, selectors

KEDA: dict[str, Any] = yaml.safe_load(
    (KUSTOMIZE / "keda" / "scaled-object.yaml").read_text("utf-8")
)
ADAPTER = KUSTOMIZE / "prometheus-adapter"
HPA: dict[str, Any] = yaml.safe_load(
    (ADAPTER / "horizontal-pod-autoscaler.yaml").read_text("utf-8")
)
(RULE,) = yaml.safe_load((ADAPTER / "values.yaml").read_text("utf-8"))["rules"]["custom"]
(TRIGGER,) = KEDA["spec"]["triggers"]
(METRIC,) = HPA["spec"]["metrics"]
PODS = "vllm-0|vllm-1|vllm-2|vllm-3"


def adapter_query() -> str:
    """The rule's query as prometheus-adapter fills it in for pods."""
    query: str = RULE["metricsQuery"]
    for mark, text in (
        ("<<.Series>>", "vllm_capacity_saturation_ratio"),
        ("<<.LabelMatchers>>", f'namespace="default",pod=~"{PODS}"'),
        ("<<.GroupBy>>", "pod"),
    ):
        query = query.replace(mark, text)
    return query


def target() -> float:
    return float(METRIC["pods"]["target"]["averageValue"].removesuffix("m")) / 1000


@pytest.mark.parametrize(
    "query", [TRIGGER["metadata"]["query"], adapter_query(), RULE["seriesQuery"]]
)
def test_a_query_names_only_metrics_and_labels_that_there_are(query: str) -> None:
    (selector,) = selectors(query)
    known = LABELS_BY_METRIC[selector.metric] | {"namespace", "pod"}
    assert set(selector.matchers) | grouping_labels(query) <= known


def test_the_autoscaler_asks_for_the_name_that_the_rule_gives() -> None:
    assert METRIC["pods"]["metric"]["name"] == RULE["name"]["as"]
    assert set(RULE["resources"]["overrides"]) == {"namespace", "pod"}


def test_both_autoscalers_want_the_same() -> None:
    keda = KEDA["spec"]
    assert TRIGGER["metricType"] == METRIC["pods"]["target"]["type"] == "AverageValue"
    assert float(TRIGGER["metadata"]["threshold"]) == target()
    assert keda["minReplicaCount"] == HPA["spec"]["minReplicas"]
    assert keda["maxReplicaCount"] == HPA["spec"]["maxReplicas"]
    advanced = keda["advanced"]["horizontalPodAutoscalerConfig"]
    assert advanced["behavior"] == HPA["spec"]["behavior"]
    assert keda["scaleTargetRef"]["name"] == HPA["spec"]["scaleTargetRef"]["name"]


def test_a_lost_prometheus_is_not_taken_for_an_idle_fleet() -> None:
    assert TRIGGER["metadata"]["ignoreNullValues"] == "false"
    assert KEDA["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert KEDA["spec"]["minReplicaCount"] >= 1


def replicas(folder: Path, series: dict[str, str], total: float) -> int:
    """Replicas that both lead to, once promtool agrees that the saturation adds up to `total`."""
    case = {
        "interval": "15s",
        "input_series": [
            {
                "series": f'vllm_capacity_saturation_ratio{{namespace="default",{labels}}}',
                "values": values,
            }
            for labels, values in series.items()
        ],
        "promql_expr_test": [
            {"expr": expr, "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": total}]}
            # The autoscaler adds the pods' values up and divides by the target.
            for expr in (TRIGGER["metadata"]["query"], f"sum({adapter_query()})")
        ],
    }
    path = folder / "case.yml"
    path.write_text(yaml.safe_dump({"tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return math.ceil(total / target())


needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


@needs_promtool
def test_four_pods_of_which_twice_their_capacity_is_asked_become_ten(tmp_path: Path) -> None:
    series = {f'pod="vllm-{n}",engine="0"': "2x30" for n in range(4)}
    assert replicas(tmp_path, series, 8.0) == 10


@needs_promtool
def test_one_pod_with_a_sticky_client_does_not_multiply_the_fleet(tmp_path: Path) -> None:
    series = {f'pod="vllm-{n}",engine="0"': "0.125x30" for n in range(1, 4)}
    assert replicas(tmp_path, series | {'pod="vllm-0",engine="0"': "2x30"}, 2.375) == 3


@needs_promtool
def test_of_several_engines_the_fullest_speaks_for_its_pod(tmp_path: Path) -> None:
    series = {
        'pod="vllm-0",engine="0"': "1.5x30",
        'pod="vllm-0",engine="1"': "0.125x30",
        'pod="vllm-1",engine="0"': "0.25x30",
    }
    assert replicas(tmp_path, series, 1.75) == 3


@needs_promtool
def test_a_pod_that_loads_its_model_is_not_asked_for_twice(tmp_path: Path) -> None:
    assert replicas(tmp_path, {'pod="vllm-0",engine="0"': "1.5x30"}, 1.5) == 2
    loading = {'pod="vllm-0",engine="0"': "1.5x30", 'pod="vllm-1",engine="0"': "0x30"}
    assert replicas(tmp_path, loading, 1.5) == 2


@needs_promtool
def test_a_pod_that_misses_more_than_a_minute_of_scrapes_counts_as_before(tmp_path: Path) -> None:
    series = {'pod="vllm-0",engine="0"': "0.5x30", 'pod="vllm-1",engine="0"': "0.75x13 _x16"}
    assert replicas(tmp_path, series, 1.25) == 2


@needs_promtool
def test_pods_of_others_do_not_count(tmp_path: Path) -> None:
    series = {'pod="vllm-0",engine="0"': "0.5x30", 'pod="router-0",engine="0"': "4x30"}
    assert replicas(tmp_path, series, 0.5) == 1
