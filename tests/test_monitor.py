"""One target over time: what is published when it answers, fails, restarts and comes back."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from structlog.testing import capture_logs

from vllm_capacity.errors import SourceError
from vllm_capacity.monitor import Monitor
from vllm_capacity.predict import EngineArgs, gpu_named
from vllm_capacity.sources.log_follower import LogFollower
from vllm_capacity.sources.model_files import ModelFiles, read_model_config
from vllm_capacity.sources.vllm_http import ServedModel
from vllm_capacity.startup_watch import StartupWatch
from vllm_capacity.target_settings import TargetSettings

T = TypeVar("T")
PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
LLAMA = json.loads((Path(__file__).parent / "data/models/small-llama/config.json").read_text())


class FakeEngine:
    """A server whose answers a test sets; an exception is raised instead of answered."""

    url = "http://engine:8000"

    def __init__(self) -> None:
        self.page: bytes | Exception = PAGE
        self.served: tuple[ServedModel, ...] | Exception = ()
        self.asked = 0

    async def metrics(self) -> bytes:
        return _answer(self.page)

    async def models(self) -> tuple[ServedModel, ...]:
        self.asked += 1
        return _answer(self.served)

    async def version(self) -> str | None:
        return "0.32.0"


def _answer(answer: T | Exception) -> T:
    if isinstance(answer, Exception):
        raise answer
    return answer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A monitor over a fake engine, with a clock that the test moves."""

    def __init__(self, *, log: Path | None = None, **settings: str) -> None:
        self.engine, self.clock = FakeEngine(), Clock()
        self.command_lines: list[list[str]] = []
        self.monitor = Monitor(
            "engine:8000",
            TargetSettings(url=self.engine.url, **settings),  # type: ignore[arg-type]
            engine=self.engine,
            read_config=read_model_config,
            start_up=None if log is None else StartupWatch(LogFollower(str(log))),
            command_lines=lambda: self.command_lines,
            expiry_seconds=30.0,
            monotonic=self.clock,
            wall=self.clock,
        )

    def collect(self, after_seconds: float = 5.0) -> None:
        self.clock.now += after_seconds
        asyncio.run(self.monitor.collect_engine())
        asyncio.run(self.monitor.collect_identity())
        asyncio.run(self.monitor.collect_log())


def test_a_collection_publishes_engines_and_health() -> None:
    watched = Watched()
    assert watched.monitor.current().engines == ()
    watched.collect()
    current = watched.monitor.current()
    assert [a.snapshot.used_blocks for a in current.engines] == [13]
    assert current.health["vllm"].up is True
    assert current.health["vllm"].last_success_timestamp_seconds == watched.clock.now
    assert current.vllm_version == "0.32.0"
    assert current.response_bytes == len(PAGE)


def test_when_nobody_listens_any_more_the_engines_disappear_at_once() -> None:
    watched = Watched()
    watched.collect()
    watched.engine.page = SourceError("connect", "cannot connect: refused")
    watched.collect()
    current = watched.monitor.current()
    assert current.engines == ()
    assert current.health["vllm"].up is False
    assert current.health["vllm"].failures == {"connect": 1}


def test_after_a_slow_answer_the_last_values_stay_until_they_are_too_old() -> None:
    watched = Watched()
    watched.collect()
    watched.engine.page = SourceError("timeout", "no answer within 10 s")
    watched.collect()
    assert watched.monitor.current().engines
    watched.collect(after_seconds=26.0)
    current = watched.monitor.current()
    assert current.engines == ()
    assert current.metric_present == {}
    assert current.health["vllm"].failures == {"timeout": 2}


def test_a_hung_collection_lets_the_values_expire_too() -> None:
    watched = Watched()
    watched.collect()
    watched.clock.now += 31.0
    assert watched.monitor.current().engines == ()


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (b"<html>", "was cut"),
        (b"", "without a single vLLM metric"),
        (b"process_start_time_seconds 1\n", "without a single vLLM metric"),
        (PAGE[:-10], "was cut"),
        (PAGE + b"vllm:num_requests_running{ 1\n", "labels that cannot be read"),
    ],
)
def test_a_page_that_is_none_fails_with_a_reason_and_the_next_one_works(
    page: bytes, problem: str
) -> None:
    watched = Watched()
    watched.engine.page = page
    watched.collect()
    health = watched.monitor.current().health["vllm"]
    assert health.failures == {"parse": 1}
    assert health.last_error is not None
    assert problem in health.last_error
    watched.engine.page = PAGE
    watched.collect()
    assert watched.monitor.current().engines


def test_a_fault_of_our_own_is_survived_and_named() -> None:
    watched = Watched()
    watched.engine.page = ZeroDivisionError("ours")
    watched.collect()
    health = watched.monitor.current().health["vllm"]
    assert health.failures == {"internal": 1}
    assert "please report it" in str(health.last_error)
    watched.engine.page = PAGE
    watched.collect()
    assert watched.monitor.current().engines


def test_a_server_that_does_not_say_what_it_serves_is_watched_all_the_same() -> None:
    watched = Watched()
    watched.engine.served = SourceError("http", "401")
    watched.collect()
    current = watched.monitor.current()
    assert current.engines
    assert current.health["vllm"].up is True
    assert current.prediction.reason == "no_config"


def test_identity_is_asked_for_once_a_minute_not_at_every_collection() -> None:
    watched = Watched()
    for _ in range(11):
        watched.collect(after_seconds=5.0)
    assert watched.engine.asked == 1
    watched.collect(after_seconds=10.0)
    assert watched.engine.asked == 2


def test_a_restart_is_counted_and_the_identity_asked_for_anew() -> None:
    watched = Watched()
    watched.collect()
    started = PAGE.split(b"process_start_time_seconds ")[-1].split(b"\n")[0]
    watched.engine.page = PAGE.replace(started, b"1.8e+09")
    watched.collect()
    assert [a.restarts for a in watched.monitor.current().engines] == [1]
    watched.collect()
    assert watched.engine.asked == 2


def test_a_target_that_comes_back_is_asked_anew_what_it_serves() -> None:
    watched = Watched()
    watched.collect()
    watched.engine.page = SourceError("connect", "cannot connect: refused")
    watched.collect()
    assert watched.engine.asked == 1
    watched.engine.page = PAGE
    watched.collect()
    assert watched.engine.asked == 2


def test_a_server_slow_to_say_what_it_serves_delays_no_page() -> None:
    watched = Watched()
    answering = asyncio.Event()

    async def slow() -> tuple[ServedModel, ...]:
        await answering.wait()
        return (ServedModel(id="m", root=None, max_model_len=2048),)

    watched.engine.models = slow  # type: ignore[method-assign]

    async def both_jobs() -> tuple[list[int], int | None]:
        identity = asyncio.create_task(watched.monitor.collect_identity())
        published = []
        for _ in range(3):
            watched.clock.now += 5.0
            await watched.monitor.collect_engine()
            published.append(len(watched.monitor.current().engines))
        answering.set()
        await identity
        await watched.monitor.collect_engine()
        return published, watched.monitor.current().engines[0].limits.max_model_len

    assert asyncio.run(both_jobs()) == ([1, 1, 1], 2048)


def test_the_config_is_read_where_the_server_says_that_the_model_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    watched = Watched()
    watched.engine.served = (ServedModel(id="m", root=str(tmp_path), max_model_len=2048),)
    watched.collect()
    watched.collect()
    current = watched.monitor.current()
    assert current.health["config"].up is True
    assert current.prediction.reason == "override"
    [engine] = current.engines
    assert engine.predicted.blocks == 349
    assert engine.predicted.tokens == engine.reported.tokens == 11200
    assert engine.predicted.full_length_concurrency == engine.reported.full_length_concurrency


def test_a_config_that_is_wrong_is_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": "many"}))
    watched = Watched(model_config=str(tmp_path))
    watched.collect()
    asyncio.run(watched.monitor.collect_config())
    current = watched.monitor.current()
    assert current.prediction.reason == "bad_config"
    assert "num_hidden_layers" in current.prediction.message
    assert current.engines


def test_a_config_that_is_missing_is_a_state_with_a_name(tmp_path: Path) -> None:
    watched = Watched(model_config=str(tmp_path / "nowhere"))
    watched.collect()
    asyncio.run(watched.monitor.collect_config())
    current = watched.monitor.current()
    assert current.health["config"].failures == {"absent": 2}
    assert current.prediction.reason == "no_config"
    assert "nowhere" in current.prediction.message


def test_the_prediction_is_made_anew_only_when_a_fact_changes() -> None:
    watched = Watched()
    watched.monitor._adopt(ModelFiles(config=LLAMA, hf_quant_config=None, path="config.json"), None)
    watched.collect()
    first = watched.monitor.current().prediction
    watched.collect()
    assert watched.monitor.current().prediction is first


START_UP = """\
INFO 11-21 10:00:01 [api_server.py:1] vLLM API server version 0.32.0
INFO 11-21 10:00:01 [utils.py:2] non-default args: {'max_model_len': 1024, 'dtype': 'bfloat16'}
INFO 11-21 10:00:30 [gpu_model_runner.py:1] Model loading took 5.0 GiB memory and 9.5 seconds
"""


def _watched_with_log(log: Path) -> Watched:
    config = Path(__file__).parent / "data/models/small-llama"
    watched = Watched(log=log, model_config=str(config))
    asyncio.run(watched.monitor.collect_config())
    watched.monitor._facts = replace(watched.monitor._facts, gpu=gpu_named("H100"))
    return watched


def _terms(watched: Watched) -> tuple[int, str]:
    prediction = watched.monitor.current().prediction.prediction
    assert prediction is not None
    assert prediction.budget is not None
    return prediction.budget.weights_bytes, prediction.budget.origins["weights"]


def test_what_a_start_up_log_measured_replaces_what_was_estimated(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    watched = _watched_with_log(log)
    watched.collect()
    assert "measured" not in _terms(watched)[1]
    assert watched.monitor.current().health["log"].last_reason == "absent"
    log.write_text(START_UP)
    watched.collect()
    assert _terms(watched) == (5 << 30, "measured: start-up log, vLLM 0.32.0")
    assert watched.monitor.current().health["log"].up is True


def test_the_log_tells_arguments_that_metrics_do_not(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(START_UP)
    watched = _watched_with_log(log)
    watched.collect()
    prediction = watched.monitor.current().prediction.prediction
    assert prediction is not None
    assert prediction.resolved is not None
    assert prediction.resolved.max_model_len == 1024


def test_a_restart_in_the_log_begins_a_new_profile(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(START_UP)
    watched = _watched_with_log(log)
    watched.collect()
    with log.open("a") as file:
        file.write(START_UP.replace("5.0 GiB", "6.0 GiB"))
    watched.collect()
    assert _terms(watched)[0] == 6 << 30


def test_sources_that_disagree_are_told_once_and_published(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(START_UP)
    watched = Watched(log=log, engine_args=EngineArgs(max_model_len=512))  # type: ignore[arg-type]
    with capture_logs() as lines:
        watched.collect()
        watched.collect()
    said = [line for line in lines if "disagree" in line["event"]]
    assert [(line["argument"], line["value"], line["denied_value"]) for line in said] == [
        ("max_model_len", "512", "1024")
    ]
    [denial] = watched.monitor.current().started_with.denials()
    assert (denial.source, denial.denied_by) == ("flag", "log")


def test_the_command_line_of_the_engine_s_process_tells_arguments() -> None:
    watched = Watched()
    watched.command_lines = [["vllm", "serve", "m", "--max-num-seqs", "96"]]
    watched.collect()
    [engine] = watched.monitor.current().engines
    assert engine.limits.max_num_seqs == 96
    assert engine.limits.origins["max_num_seqs"] == "process"
    watched.command_lines = []
    watched.collect()
    assert watched.monitor.current().engines[0].limits.max_num_seqs is None
