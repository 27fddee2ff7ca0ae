"""``vllm-capacity check URL``: one look at a server."""

import argparse
import asyncio
import sys
import time

from vllm_capacity.commands.engine_flags import add_deployment_flags, deployment_facts
from vllm_capacity.compare.assessment import EngineAssessment
from vllm_capacity.compare.fleet import PredictionStatus
from vllm_capacity.errors import ExpositionError, SourceError
from vllm_capacity.monitor import Pipeline
from vllm_capacity.observe.engine_snapshot import PageSnapshot
from vllm_capacity.sources.vllm_http import ServedModel, VllmHttp, new_client
from vllm_capacity.status.facts import facts_of
from vllm_capacity.status.verdict import engine_verdict

UNREADABLE, INCOMPLETE = 1, 3
_MAX_PAGE_BYTES = 8 << 20

# What is lost without each metric; ("essential": nothing can be said of capacity without it)
GAPS = {
    "vllm:cache_config_info": ("essential", "no pool size: no blocks, tokens or headroom"),
    "vllm:kv_cache_usage_perc": ("essential", "no used or free blocks, no headroom"),
    "vllm:num_requests_running": ("essential", "no running requests: no headroom, no ledger"),
    "vllm:num_requests_waiting": ("essential", "no queue: no headroom, no ledger"),
    "vllm:prompt_tokens_total": ("ledger", "no tokens in flight, no predicted used blocks"),
    "vllm:generation_tokens_total": ("ledger", "no tokens in flight, no predicted used blocks"),
    "vllm:request_prompt_tokens": ("ledger", "no tokens in flight, no request sizes"),
    "vllm:request_generation_tokens": ("ledger", "no tokens in flight, no request sizes"),
    "vllm:time_to_first_token_seconds": ("ledger", "hang-ups and preemptions cannot be counted"),
    "vllm:num_preemptions_total": ("detail", "no share of preempted requests"),
    "vllm:prompt_tokens_cached_total": ("detail", "a shared prefix counts every time"),
    "vllm:request_prefill_kv_computed_tokens": ("detail", "a shared prefix counts every time"),
}  # fmt: skip

_EPILOG = """\
exit status:
  0  everything that capacity needs is there
  1  the server cannot be read
  2  the command was asked wrongly
  3  the server can be read, but an essential metric is missing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``check``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("url", metavar="URL", help="a vLLM server, as in http://localhost:8000")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="for each page (default: 10)"
    )
    parser.add_argument("--bearer-token-file", metavar="PATH", help="file with a token to send")
    parser.add_argument("--ca-file", metavar="PATH", help="certificate authorities to trust")
    parser.add_argument("--client-cert-file", metavar="PATH", help="certificate to show")
    parser.add_argument("--client-key-file", metavar="PATH", help="its key, if in another file")
    parser.add_argument("--tls-server-name", metavar="NAME", help="name in its certificate")
    add_deployment_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Look once and tell; see the exit status in ``--help``."""
    return asyncio.run(_check(args))


async def _check(args: argparse.Namespace) -> int:
    async with new_client(
        ca_file=args.ca_file,
        client_cert_file=args.client_cert_file,
        client_key_file=args.client_key_file,
    ) as client:
        server = VllmHttp(
            args.url,
            client=client,
            timeout_seconds=args.timeout,
            max_body_bytes=_MAX_PAGE_BYTES,
            bearer_token_file=args.bearer_token_file,
            tls_server_name=args.tls_server_name,
        )
        pipeline = Pipeline()
        started = time.monotonic()
        try:
            page = await server.metrics()
            snapshot = pipeline.read(page, taken_at_seconds=started)
        except (SourceError, ExpositionError) as error:
            print(f"vllm-capacity: {error}", file=sys.stderr)
            return UNREADABLE
        seconds = time.monotonic() - started
        print(f"{server.url}: a page of {len(page):,} bytes in {seconds:.2f} s")
        models, version = await _identity(server)
    _print_identity(models, version)
    facts = deployment_facts(args, served=models[0] if models else None, version=version)
    facts = facts.with_labels(snapshot.engines[0].cache_config)
    engines = pipeline.assess(snapshot, facts)
    prediction = pipeline.predicted(facts)[0]
    for assessment in engines:
        _print_engine(assessment, prediction)
    _print_prediction(prediction)
    return _print_gaps(snapshot)


async def _identity(server: VllmHttp) -> tuple[tuple[ServedModel, ...], str | None]:
    models: tuple[ServedModel, ...] = ()
    version: str | None = None
    try:
        models = await server.models()
        version = await server.version()
    except SourceError as error:
        print(f"  {error}")
    return models, version


def _print_identity(models: tuple[ServedModel, ...], version: str | None) -> None:
    print(f"  vLLM {version or 'of unknown version'}")
    for model in models:
        print(f"  model {model.id}, max_model_len {model.max_model_len or 'unknown'}")


def _print_engine(assessment: EngineAssessment, prediction: PredictionStatus) -> None:
    sentence = engine_verdict(assessment, prediction).sentence
    print(f"\nengine {assessment.snapshot.engine}: {sentence}")
    for label, value in facts_of(assessment):
        print(f"  {label:<34} {value}")


def _print_prediction(status: PredictionStatus) -> None:
    word = "comparable" if status.supported else "not comparable"
    print(f"\nprediction: {word} ({status.reason}): {status.message}")


def _print_gaps(snapshot: PageSnapshot) -> int:
    missing = [name for name, present in snapshot.metric_present.items() if not present]
    if not missing:
        print("\nnothing is missing")
        return 0
    print("\nmissing, under every name that vLLM has used:")
    for name in missing:
        weight, cost = GAPS[name]
        print(f"  {name:<42} {weight}: {cost}")
    essential = any(GAPS[name][0] == "essential" for name in missing)
    return INCOMPLETE if essential else 0
