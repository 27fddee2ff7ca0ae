"""``GET /api/v1/predict``: equal to what is exported, bounded, and clear in what it refuses."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))

from asked import CONFIG, GEMMA, PAGE_BY_BYTES, fleet, get, get_all, keys, named, problem, target

from vllm_capacity.compare.fleet import FleetAssessment, PredictionStatus
from vllm_capacity.status import what_if
from vllm_capacity.web import predict_api
from vllm_capacity.web.predict_api import predict_route

PREFIX = "vllm_capacity_predicted_"


def ask(query: str = "", published: FleetAssessment | None = None) -> Any:
    published = published or fleet()
    return get(f"/api/v1/predict{query}", published, [predict_route(lambda: published)])


def exported(published: FleetAssessment) -> dict[str, float]:
    page = get("/metrics", published, []).text
    return {
        sample.name.removeprefix(PREFIX): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


def test_today_is_what_is_exported_as_predicted() -> None:
    published = fleet()
    today, series = ask("", published).json()["today"], exported(published)
    assert today["blocks"] == series["kv_cache_blocks"] == 349
    assert today["capacity_tokens"] == series["kv_cache_capacity_tokens"] == 11200
    assert today["capacity_bytes"] == series["kv_cache_capacity_bytes"]
    assert today["full_length_concurrency"] == series["full_length_concurrency"]


def test_the_answer_has_the_keys_that_are_documented() -> None:
    document = ask("?kv_cache_dtype=fp8&mean_prompt_tokens=100&mean_output_tokens=20").json()
    assert {"target": "a:8000", "engine": "0", "flags": "--kv-cache-dtype fp8"}.items() <= (
        document.items()
    )
    docs = Path(__file__).parents[2] / "docs"
    page = "".join(path.read_text(encoding="utf-8") for path in docs.glob("api*.md"))
    for name in keys_of(document):
        assert f"`{name}`" in page, name


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


def test_a_cheaper_cache_holds_more_and_says_so() -> None:
    document = ask(
        "?kv_cache_dtype=fp8&mean_prompt_tokens=100&mean_output_tokens=20",
        fleet(target(page=PAGE_BY_BYTES)),
    ).json()
    assert document["today"]["planned_from"] == "kv_cache_memory_bytes"
    assert document["changed"]["arguments"]["kv_cache_dtype"] == "fp8"
    assert document["difference"]["capacity_tokens"] > 0
    assert document["difference"]["requests"]["mean"] > 0
    assert document["workload"]["origin"] == "given"


def test_a_target_that_is_down_can_be_asked_about_without_an_engine() -> None:
    down = fleet(replace(target(), engines=()))
    document = ask("?mean_prompt_tokens=100&mean_output_tokens=20", down).json()
    assert document["engine"] is None
    assert document["today"]["headroom_requests"] is None
    assert document["today"]["requests"]["mean"] > 0
    assert keys(problem(ask("?engine=0", down), 404)) == {"engine"}


def test_which_of_several_must_be_said() -> None:
    several = fleet(named(target("a:8000"), "0", "1"), target("b:8000"))
    assert keys(problem(ask("", several), 400)) == {"target"}
    assert keys(problem(ask("?target=c", several), 404)) == {"target"}
    assert keys(problem(ask("?target=a:8000&max_num_seqs=x", several), 400)) == {"engine"}
    assert ask("?target=a:8000&engine=1", several).json()["engine"] == "1"


def test_every_fault_is_told_at_once_and_what_can_be_asked_is_listed() -> None:
    found = problem(
        ask("?max_num_seqs=x&max_num_seqs=1&gpu=H100&block_size=&mean_prompt_tokens=-1&dtype=;"),
        400,
    )
    assert keys(found) == {"max_num_seqs", "gpu", "block_size", "mean_prompt_tokens", "dtype"}
    told = json.dumps(found)
    assert "kv_cache_dtype" in told
    assert "p95_output_tokens" in told


REFUSED = {
    "no_config": (409, "give --model-config"),
    "bad_config": (409, "num_attention_heads"),
    "unsupported": (422, "not described exactly"),
    "no_memory": (409, "with --gpu"),
}


def unpredicted(reason: str) -> FleetAssessment:
    page = PAGE_BY_BYTES.replace(b'memory_bytes="1073741824"', b'memory_bytes="None"')
    return {
        "no_config": lambda: fleet(target(config=None)),
        "bad_config": lambda: fleet(target(config=CONFIG | {"num_attention_heads": "many"})),
        "unsupported": lambda: fleet(target(config=CONFIG | {"architectures": ["MineForMe"]})),
        "no_memory": lambda: fleet(target(page=page)),
    }[reason]()


@pytest.mark.parametrize("reason", REFUSED)
def test_where_nothing_is_predicted_it_is_said_why_and_what_to_do(reason: str) -> None:
    status, words = REFUSED[reason]
    published = unpredicted(reason)
    assert published.targets[0].prediction.reason == reason
    assert words in problem(ask("?kv_cache_dtype=fp8", published), status)["detail"]


def test_an_argument_that_is_missing_today_can_be_given_with_the_question() -> None:
    published = fleet(target(page=PAGE_BY_BYTES, config=GEMMA))
    assert "max_num_batched_tokens" in problem(ask("", published), 422)["detail"]
    document = ask("?max_num_batched_tokens=2048", published).json()
    assert (document["today"]["starts"], document["changed"]["starts"]) == (None, True)
    assert document["difference"]["blocks"] is None
    sized = ask("?kv_cache_memory_bytes=1g&block_size=32", unpredicted("no_memory")).json()
    assert sized["changed"]["blocks"] > 0


def test_the_same_question_is_predicted_once_until_the_deployment_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def counted(*question: Any, **known: Any) -> Any:
        asked.append(question)
        return what_if.explore(*question, **known)

    monkeypatch.setattr(predict_api, "explore", counted)
    now = [fleet()]
    route = predict_route(lambda: now[0])
    answers = [get("/api/v1/predict?max_num_seqs=8", now[0], [route]).json() for _ in range(3)]
    assert len(asked) == 1
    assert answers[0] == answers[1] == answers[2]
    now[0] = fleet(target(max_num_seqs=16))
    get("/api/v1/predict?max_num_seqs=8", now[0], [route])
    get("/api/v1/predict?max_num_seqs=9", now[0], [route])
    assert len(asked) == 3


def test_a_flood_of_questions_is_turned_away_with_a_time_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once, most = [0], [0]

    def slow(*question: Any, **known: Any) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        Event().wait(0.01)
        at_once[0] -= 1
        return what_if.explore(*question, **known)

    monkeypatch.setattr(predict_api, "explore", slow)
    published = fleet()
    paths = [f"/api/v1/predict?max_num_seqs={n}" for n in range(1, 101)]
    began = time.monotonic()
    responses = get_all(paths, published, [predict_route(lambda: published)])
    seconds = time.monotonic() - began
    turned_away = [each for each in responses if each.status_code != 200]
    assert most[0] == 1
    assert seconds > 15 * 0.1  # at rest nine tenths of the time
    assert len(turned_away) == 84
    for each in turned_away:
        problem(each, 503)
        assert each.headers["retry-after"] == "1"


def test_answers_about_the_same_workload_share_the_alternatives_and_others_do_not() -> None:
    published = fleet(target(page=PAGE_BY_BYTES))
    route = predict_route(lambda: published)
    sizes = "mean_prompt_tokens=100&mean_output_tokens="

    def requests(query: str) -> Any:
        document = get(f"/api/v1/predict?{query}", published, [route]).json()
        return {each["flags"]: each["requests"] for each in document["alternatives"]}

    first = requests(sizes + "20")
    assert requests(sizes + "20&max_num_seqs=8") == first
    assert requests(sizes + "900&max_num_seqs=8") != first


def test_only_so_many_answers_are_kept() -> None:
    published = fleet()
    explorer = predict_api.Explorer()
    routes = [predict_route(lambda: published, explorer=explorer)]
    for number in range(1, 71):
        path = f"/api/v1/predict?max_num_seqs={number}"
        assert get(path, published, routes).status_code == 200
    assert len(explorer) == 64


def test_the_same_question_of_many_pages_at_once_is_predicted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def counted(*question: Any, **known: Any) -> Any:
        asked.append(question)
        return what_if.explore(*question, **known)

    monkeypatch.setattr(predict_api, "explore", counted)
    published = fleet()
    responses = get_all(["/api/v1/predict"] * 16, published, [predict_route(lambda: published)])
    assert {each.status_code for each in responses} == {200}
    assert len(asked) == 1


HOSTILE = '<script>alert(1)</script>";rm -rf / #'


@pytest.mark.parametrize("name", ["kv_cache_dtype", "quantization", "speculative_config", HOSTILE])
def test_what_is_asked_comes_back_as_json_alone(name: str) -> None:
    published = fleet()
    response = get_all(
        [f"/api/v1/predict?{name}={HOSTILE}"], published, [predict_route(lambda: published)]
    )[0]
    assert response.headers["content-type"].startswith("application/")
    json.loads(response.text)


def test_no_deployment_is_shown_that_was_not_predicted() -> None:
    nothing = PredictionStatus(prediction=None, reason="no_config", message="no config.json")
    assert nothing.deployment is None
    assert target().prediction.deployment is not None
