"""Documentation that fails when it lies."""

import argparse
import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_capacity.cli import COMMANDS
from vllm_capacity.commands import top
from vllm_capacity.commands.check import GAPS
from vllm_capacity.commands.predict_answers import WORKLOAD_FLAGS
from vllm_capacity.commands.record import OPTIONS as RECORD_OPTIONS
from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.export.metric import PREFIX
from vllm_capacity.observe.metric_names import EXPECTED_METRICS
from vllm_capacity.predict.engine_flags import ENGINE_FLAGS
from vllm_capacity.settings import SETTINGS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FAMILIES = {metric.name for metric in CATALOGUE}
SERIES = FAMILIES | {
    f"{metric.name}_{part}"
    for metric in CATALOGUE
    if metric.kind == "histogram"
    for part in ("bucket", "count", "sum")
}


def named_metrics(text: str) -> set[str]:
    """Full metric names in a text; one cut short by a brace, a star or dots is a pattern."""
    return {
        match[0]
        for match in re.finditer(rf"{PREFIX}[a-z0-9_]+(?![a-z0-9_{{*…])", text)
        if not match[0].endswith("_")
    }


def test_the_generated_tables_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_metric_that_a_page_names_is_exported(page: Path) -> None:
    assert named_metrics(page.read_text(encoding="utf-8")) <= SERIES


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_flag_that_a_page_gives_our_command_exists(page: Path) -> None:
    known = {f"--{setting.name}" for setting in SETTINGS}
    known |= {f"--no-{setting.name}" for setting in SETTINGS if not setting.metavar}
    known |= {f"--{flag.name.replace('_', '-')}" for flag in ENGINE_FLAGS}
    known |= {"--config.file", "--jsonl", "--help", "--version", "--env", "--flashinfer"}
    known |= {"--once", "--interval", "--no-color"}
    known |= {"--json", "--calibrate-from", "--save-profile", "--users"}
    known |= {f"--{name.replace('_', '-')}" for name, _ in WORKLOAD_FLAGS}
    known |= {"--redact", *(f"--{option.name}" for option in RECORD_OPTIONS)}
    known |= {"--load", "--port", "--scenario", "--num-gpu-blocks-override", "--data-parallel-size"}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^\s*(?:\$ )?vllm-capacity .*$", text, re.MULTILINE):
        ours = re.sub(r"'[^']*'", "''", line)  # a pasted vLLM command line is vLLM's own
        assert set(re.findall(r"(?<=\s)--[\w.-]+", ours)) <= known


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"vllm-capacity {command}" in readme


def test_every_flag_of_record_is_in_its_page() -> None:
    page = (ROOT / "docs" / "recordings.md").read_text(encoding="utf-8")
    assert all(f"`--{option.name}`" in page for option in RECORD_OPTIONS)


def test_every_flag_of_top_is_in_its_page_or_is_one_of_serve() -> None:
    parser = argparse.ArgumentParser()
    top.add_arguments(parser)
    page = (ROOT / "docs" / "top.md").read_text(encoding="utf-8")
    engine = {f"--{flag.name.replace('_', '-')}" for flag in ENGINE_FLAGS}
    of_serve = {f"--{setting.name}" for setting in SETTINGS} | engine | {"--config.file", "--help"}
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings}
    assert "--once" in flags
    assert all(f"`{flag}`" in page for flag in flags - of_serve - {"-h"})


def test_every_metric_that_check_may_miss_has_its_cost() -> None:
    assert set(GAPS) == set(EXPECTED_METRICS)


def test_names_carry_units_and_helps_are_sentences() -> None:
    for metric in CATALOGUE:
        assert re.fullmatch(rf"{PREFIX}[a-z0-9_]+", metric.name)
        assert metric.help.endswith((".", "1."))
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert "percent" not in metric.name


def test_no_two_rows_share_a_name() -> None:
    assert len(FAMILIES) == len(CATALOGUE)


@pytest.mark.parametrize("dashboard", sorted(ROOT.glob("dashboards/*.json")), ids=lambda p: p.name)
def test_every_metric_that_a_dashboard_names_is_exported(dashboard: Path) -> None:
    text = json.dumps(json.loads(dashboard.read_text(encoding="utf-8")))
    names = set(re.findall(rf"{PREFIX}[a-z0-9_]+", text))
    assert names <= SERIES


@pytest.mark.parametrize(
    "module",
    sorted(
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src").rglob("*.py")
        if ">>>" in path.read_text(encoding="utf-8")
    ),
)
def test_the_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
