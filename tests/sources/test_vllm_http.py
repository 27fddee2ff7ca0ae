"""Answers as a server ought to give them. What hostile ones give is in test_hostile_http."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import respx

from vllm_capacity.errors import SettingsError, SourceError
from vllm_capacity.sources.vllm_http import ServedModel, VllmHttp, new_client

T = TypeVar("T")
PAGE = b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 3.0\n'
MODELS = {
    "object": "list",
    "data": [
        {"id": "qwen", "root": "/models/qwen3", "parent": None, "max_model_len": 4096},
        {"id": "alias", "root": "/models/qwen3", "parent": None, "max_model_len": 4096},
        {"id": "sql-lora", "root": "/adapters/sql", "parent": "qwen", "max_model_len": None},
    ],
}


def ask(
    what: Callable[[VllmHttp], Awaitable[T]],
    url: str = "http://engine:8000",
    token_file: Path | None = None,
) -> T:
    async def asked() -> T:
        async with new_client(tls=False) as client:
            engine = VllmHttp(
                url,
                client=client,
                timeout_seconds=2,
                max_body_bytes=10_000,
                bearer_token_file=str(token_file) if token_file else None,
            )
            return await what(engine)

    return asyncio.run(asked())


@respx.mock
def test_metrics_are_the_page_as_sent() -> None:
    respx.get("http://engine:8000/metrics").respond(content=PAGE)
    assert ask(VllmHttp.metrics) == PAGE


@respx.mock
def test_a_prefix_of_a_proxy_stays_before_every_page() -> None:
    route = respx.get("http://engine:8000/team/a/version").respond(json={"version": "0.32.0"})
    ask(VllmHttp.version, "http://engine:8000/team/a/metrics")
    assert route.called


@respx.mock
def test_models_are_the_base_models_without_adapters() -> None:
    respx.get("http://engine:8000/v1/models").respond(json=MODELS)
    assert ask(VllmHttp.models) == (
        ServedModel(id="qwen", root="/models/qwen3", max_model_len=4096),
        ServedModel(id="alias", root="/models/qwen3", max_model_len=4096),
    )


@respx.mock
@pytest.mark.parametrize("unknown", [{}, {"max_model_len": None, "root": None}, {"root": 5}])
@pytest.mark.parametrize("length", [None, 0, -1, True, "4096", 4096.0])
def test_what_a_model_does_not_tell_is_none(unknown: dict[str, object], length: object) -> None:
    card = {"id": "m", "max_model_len": length, **unknown}
    respx.get("http://engine:8000/v1/models").respond(json={"data": [card]})
    assert ask(VllmHttp.models) == (ServedModel(id="m", root=None, max_model_len=None),)


@respx.mock
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<html>", "answered 6 bytes that are not JSON"),
        ("[" * 9000, "answered 9000 bytes that are not JSON"),
        ("\xff", "that are not JSON"),
        ("[]", "answered JSON that is not an object"),
        ('{"object": "list"}', "answered JSON without the list data"),
        ('{"data": {}}', "answered JSON without the list data"),
        ('{"data": [{}]}', "lists a model without an id"),
        ('{"data": [7]}', "lists a model without an id"),
    ],
)
def test_models_that_cannot_be_read_are_a_parse_error(answer: str, said: str) -> None:
    respx.get("http://engine:8000/v1/models").respond(content=answer.encode("latin-1"))
    with pytest.raises(SourceError) as caught:
        ask(VllmHttp.models)
    assert caught.value.reason == "parse"
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


@respx.mock
@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (httpx.Response(200, json={"version": "0.32.0"}), "0.32.0"),
        (httpx.Response(404, json={"detail": "Not Found"}), None),
        (httpx.Response(200, json={}), None),
        (httpx.Response(200, json={"version": 7}), None),
    ],
)
def test_a_version_that_is_not_told_is_none(answer: httpx.Response, version: str | None) -> None:
    respx.get("http://engine:8000/version").mock(return_value=answer)
    assert ask(VllmHttp.version) == version


@respx.mock
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "answered 401 Unauthorized; give a bearer token file"),
        (403, "answered 403 Forbidden; these credentials may not read the page"),
        (404, "answered 404 Not Found; is it a vLLM server?"),
        (500, "answered 500 Internal Server Error"),
        (503, "answered 503 Service Unavailable"),
        (204, "answered 204 No Content"),
        (299, "answered 299"),
    ],
)
def test_every_status_but_200_is_named(status: int, said: str) -> None:
    respx.get("http://engine:8000/metrics").respond(status, content=b"secret stack trace")
    with pytest.raises(SourceError) as caught:
        ask(VllmHttp.metrics)
    assert (caught.value.reason, str(caught.value)) == (
        "http",
        f"http://engine:8000/metrics: {said}",
    )


@respx.mock
@pytest.mark.parametrize(
    ("location", "said"),
    [
        (
            "https://me:hunter2@engine/metrics?key=hunter2#hunter2",
            "answered 307, a redirect to https://engine/metrics; give the final address",
        ),
        ("/login", "answered 307, a redirect to http://engine:8000/login; give the final address"),
        ("http://hunter2:port", "broken HTTP: Invalid URL in location header"),
    ],
)
def test_a_redirect_is_shown_without_secrets_and_not_followed(location: str, said: str) -> None:
    respx.get("http://engine:8000/metrics").respond(307, headers={"Location": location})
    with pytest.raises(SourceError) as caught:
        ask(VllmHttp.metrics)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert respx.calls.call_count == 1


@respx.mock
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=utf-8", b"hello"),
        ("TEXT/HTML", b"hello"),
        ("application/json", json.dumps(MODELS).encode()),
        ("text/plain", b"\n  <!doctype html>"),
        ("", b"<?xml version='1.0'?>"),
    ],
)
def test_a_page_of_another_kind_is_a_parse_error(content_type: str, body: bytes) -> None:
    headers = {"Content-Type": content_type}
    respx.get("http://engine:8000/metrics").respond(content=body, headers=headers)
    with pytest.raises(SourceError, match=r"answered \d+ bytes of .*, not metrics") as caught:
        ask(VllmHttp.metrics)
    assert caught.value.reason == "parse"


@respx.mock
@pytest.mark.parametrize("content_type", ["text/plain; version=1.0.0", "application/octet-stream"])
def test_a_metrics_page_is_known_by_its_text_whatever_its_kind(content_type: str) -> None:
    headers = {"Content-Type": content_type}
    respx.get("http://engine:8000/metrics").respond(content=PAGE, headers=headers)
    assert ask(VllmHttp.metrics) == PAGE


@respx.mock
def test_the_token_file_is_read_anew_for_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    route = respx.get("http://engine:8000/metrics").respond(content=PAGE)

    async def twice(engine: VllmHttp) -> None:
        token.write_text("first\n")
        await engine.metrics()
        token.write_text("second\n")
        await engine.metrics()

    ask(twice, token_file=token)
    sent = [call.request.headers["Authorization"] for call in route.calls]
    assert sent == ["Bearer first", "Bearer second"]


@respx.mock
@pytest.mark.parametrize("content", ["", " \n", "hunter2 hunter2", "hunter2\r\nHost: x", "hünter2"])
def test_a_token_that_no_header_can_hold_is_refused_unshown(tmp_path: Path, content: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    with pytest.raises(SourceError, match="must hold one visible ASCII word") as caught:
        ask(VllmHttp.metrics, token_file=token)
    assert caught.value.reason == "invalid"
    assert "nter2" not in str(caught.value)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="token: cannot be read: No such file") as caught:
        ask(VllmHttp.metrics, token_file=tmp_path / "token")
    assert caught.value.reason == "invalid"


@respx.mock
def test_credentials_in_the_url_are_sent_and_never_shown() -> None:
    route = respx.get("http://engine:8000/metrics").respond(401)
    with pytest.raises(SourceError) as caught:
        ask(VllmHttp.metrics, "http://me:hunter2@engine:8000")
    sent = route.calls.last.request.headers["Authorization"]
    assert sent == "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert "hunter2" not in str(caught.value)


def test_two_kinds_of_credentials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no user and password where a bearer token file"):
        ask(VllmHttp.metrics, "http://me:hunter2@engine:8000", tmp_path / "token")


@respx.mock
def test_cookies_are_neither_kept_nor_sent() -> None:
    route = respx.get("http://engine:8000/metrics").respond(
        content=PAGE, headers={"Set-Cookie": "session=1; Path=/"}
    )

    async def twice(engine: VllmHttp) -> None:
        await engine.metrics()
        await engine.metrics()

    ask(twice)
    assert "Cookie" not in route.calls.last.request.headers


@respx.mock
def test_proxies_and_netrc_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine engine login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    route = respx.get("http://engine:8000/metrics").respond(content=PAGE)
    ask(VllmHttp.metrics)
    assert "Authorization" not in route.calls.last.request.headers


def test_a_file_of_authorities_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ca_file: cannot be used: No such file"):
        new_client(ca_file=str(tmp_path / "ca.pem"))
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    with pytest.raises(SettingsError, match="ca_file: cannot be used"):
        new_client(ca_file=str(empty))
