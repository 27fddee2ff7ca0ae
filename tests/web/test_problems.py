"""Errors of the API: problem details, whole, bounded, and without anything of ours inside."""

import sys
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parent))

from asked import fleet, get, problem

from vllm_capacity.errors import Fault
from vllm_capacity.web.problems import Problem, bad_request

SECRET = "hf_Pl4nted53cret9f8e7d"  # noqa: S105 (planted)


def raising(error: Exception) -> Route:
    async def endpoint(_: Request) -> Response:
        raise error

    return Route("/api/v1/raising", endpoint)


def test_a_problem_is_sent_as_rfc_9457_says_with_its_headers() -> None:
    busy = Problem(503, "Service Unavailable", "Later.", headers={"Retry-After": "1"})
    response = get("/api/v1/raising", fleet(), [raising(busy)])
    assert response.headers["retry-after"] == "1"
    assert problem(response, 503) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Later.",
        "instance": "/api/v1/raising",
        "faults": [],
    }


def test_every_fault_is_told_with_its_key_its_value_and_what_to_do() -> None:
    faults = [Fault("since", "x", "must be a number"), Fault("engine", None, "is missing")]
    found = problem(get("/api/v1/raising", fleet(), [raising(bad_request(faults))]), 400)
    assert found["faults"] == [
        {"key": "since", "value": "x", "problem": "must be a number"},
        {"key": "engine", "value": None, "problem": "is missing"},
    ]
    assert "since, engine" in found["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_method_that_is_not_offered_is_a_problem_that_says_what_is(method: str) -> None:
    response = get("/api/v1/raising", fleet(), [raising(KeyError())], method=method)
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert "GET" in problem(response, 405)["detail"]


@pytest.mark.parametrize("path", ["/api/", "/api/v1", "/api/v1/nothing", "/api/v2/status"])
def test_an_unknown_endpoint_is_a_problem(path: str) -> None:
    response = get(path, fleet(), [raising(KeyError())])
    assert problem(response, 404)["instance"] == path


def test_elsewhere_errors_are_plain_text() -> None:
    response = get("/nowhere", fleet(), [])
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/plain")


def test_a_fault_of_ours_says_nothing_of_our_insides() -> None:
    response = get("/api/v1/raising", fleet(), [raising(KeyError(f"inside {SECRET}"))])
    found = problem(response, 500)
    assert "KeyError" not in response.text
    assert SECRET not in response.text
    assert "log" in found["detail"]


def test_neither_secrets_nor_long_values_are_repeated() -> None:
    faults = [
        Fault("api_key", "hunter2", "is not known"),
        Fault("api_key", SECRET, f"token {SECRET} is not known"),
        Fault("max_num_seqs", f"https://me:{SECRET}@host", "must be a number"),
        Fault("x" * 5000, "y" * 5000, "there is no such parameter"),
        *(Fault("more", None, "is wrong") for _ in range(500)),
    ]
    response = get("/api/v1/raising", fleet(), [raising(bad_request(faults))])
    problem(response, 400)
    assert SECRET not in response.text
    assert "hunter2" not in response.text
    assert len(response.content) < 5000


def test_markup_in_a_path_stays_out_of_the_answer() -> None:
    response = get("/api/v1/<script>alert(1)</script>", fleet(), [])
    assert "<script" not in response.text
    assert problem(response, 404)["instance"].startswith("/api/v1/%3Cscript")
