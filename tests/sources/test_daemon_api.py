"""A daemon told from whatever else answers, and the age of what it says by its own clock."""

import asyncio
from email.utils import formatdate
from typing import Any

import httpx
import pytest
import respx

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.daemon_api import DaemonApi, StatusAnswer
from vllm_capacity.sources.vllm_http import _root_cause, new_client

URL = "http://daemon:8935"
MADE = 1795280000.0
DOCUMENT = {"api_version": 1, "generated_timestamp_seconds": MADE, "targets": []}


async def _with_api(ask: Any) -> Any:
    async with new_client(tls=False) as client:
        return await ask(DaemonApi(URL, client=client, timeout_seconds=5, max_body_bytes=10_000))


def asked(ask: Any) -> Any:
    return asyncio.run(_with_api(ask))


def status(**response: Any) -> StatusAnswer | None:
    with respx.mock:
        respx.get(f"{URL}/api/v1/status").mock(return_value=httpx.Response(**response))
        answer: StatusAnswer | None = asked(lambda api: api.status())
        return answer


def date(at: float) -> dict[str, str]:

    return {"Date": formatdate(at, usegmt=True)}


@pytest.mark.parametrize(
    ("headers", "age"),
    [
        (date(MADE + 7), 7.0),
        (date(MADE), 0.0),
        (date(MADE - 9), 0.0),
        ({}, 0.0),
        ({"Date": "x"}, 0.0),
    ],
)
def test_the_age_is_that_by_the_daemons_own_clock(headers: dict[str, str], age: float) -> None:
    answer = status(status_code=200, json=DOCUMENT, headers=headers)
    assert answer == StatusAnswer(document=DOCUMENT, age_seconds=age)


@pytest.mark.parametrize(
    "response",
    [
        {"status_code": 404},
        {"status_code": 405},
        {"status_code": 200, "text": "<html>"},
        {"status_code": 200, "json": ["api_version"]},
        {"status_code": 200, "json": {"status": "success"}},
        {"status_code": 200, "json": {"api_version": "1"}},
        {"status_code": 200, "content": b"[" * 9000},
        {"status_code": 200, "content": b'{"api_version": 1, "sequence": NaN}'},
    ],
    ids=["404", "405", "html", "list", "other api", "text", "deep", "nan"],
)
def test_whatever_answers_otherwise_is_no_daemon(response: dict[str, Any]) -> None:
    assert status(**response) is None


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"status_code": 401}, "http"),
        ({"status_code": 503}, "http"),
        ({"status_code": 302, "headers": {"Location": "http://other"}}, "http"),
        ({"status_code": 200, "json": {**DOCUMENT, "api_version": 2}}, "invalid"),
        ({"status_code": 200, "content": b" " * 20_000}, "too_large"),
    ],
)
def test_what_cannot_be_told_is_an_error(response: dict[str, Any], reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        status(**response)
    assert caught.value.reason == reason
    assert URL in str(caught.value)


def test_a_history_is_asked_for_by_names_that_need_quoting() -> None:
    columns = {"columns": {"timestamp_seconds": []}}
    with respx.mock:
        route = respx.get(
            f"{URL}/api/v1/history", params={"target": "a&b=c:8000", "engine": "0", "since": "0.0"}
        )
        route.mock(return_value=httpx.Response(200, json=columns))
        assert asked(lambda api: api.history("a&b=c:8000", "0")) == columns


@pytest.mark.parametrize("response", [{"status_code": 404}, {"status_code": 200, "text": "x"}])
def test_no_history_is_none(response: dict[str, Any]) -> None:
    with respx.mock:
        respx.get(url__startswith=f"{URL}/api/v1/history").mock(
            return_value=httpx.Response(**response)
        )
        assert asked(lambda api: api.history("a", "0")) is None


def test_errors_that_are_each_others_cause_are_told_and_not_followed_for_ever() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert _root_cause(first) in {"first", "second"}
