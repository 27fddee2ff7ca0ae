"""docs/api.md names every key of a real document, and no key that no document has."""

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fleets import NOW, PAGE, fleet, known, on_gpu, recorded, silent, target

from vllm_capacity.export.catalogue import CATALOGUE
from vllm_capacity.status.descriptions import descriptions
from vllm_capacity.status.document import status_document
from vllm_capacity.status.values import is_in_values, key_of

DOCS = Path(__file__).parent.parent.parent / "docs" / "api.md"
#: Maps whose keys are data; values are those of the catalogue.
MAPS = {"values", "held", "reported", "predicted", "denied_by", "descriptions"}
PREFIXES = {
    "key": "",
    "key of `targets[]`": "targets[].",
    "key of `engines[]`": "targets[].engines[].",
    "key of `gpus[]`": "gpus[].",
}


def documented() -> dict[str, str]:
    """Types by path, of every table whose first column is a key."""
    keys, prefix = {}, ""
    for line in DOCS.read_text(encoding="utf-8").split("## Live updates")[0].splitlines():
        if not line.startswith("| "):
            continue
        first, kind = (cell.strip() for cell in line.split("|")[1:3])
        if first in PREFIXES:
            prefix = PREFIXES[first]
        else:
            (key,) = re.findall(r"^`([^`]+)`$", first)
            keys[prefix + key] = kind
    return keys


@cache
def documents() -> list[Any]:
    """Documents in which, taken together, everything is known that can be."""
    args = known().given_args
    denied = known(log_args=type(args).from_mapping({"max_num_seqs": 64}))
    fleets = (
        on_gpu(recorded("ramp", 25.0)),
        fleet(target("a", (1.0, PAGE), facts=denied), silent()),
        fleet(recorded("ramp", 25.0, blind=True)),
    )
    made = [
        status_document(
            each, sequence=1, generated_timestamp_seconds=NOW, scrape_interval_seconds=5.0
        )
        for each in fleets
    ]
    made[0]["descriptions"] = descriptions()
    return [json.loads(json.dumps(each)) for each in made]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, by its path; keys that are data are stars."""
    if isinstance(value, list):
        for each in value:
            yield from leaves(each, path + "[]")
    elif isinstance(value, dict):
        star = re.split(r"[.\]]", path)[-1] in MAPS
        for key, each in value.items():
            name = "*" if star else key
            yield from leaves(each, f"{path}.{name}" if path else name)
    else:
        yield path, value


def found() -> Iterator[tuple[str, Any]]:
    for each in documents():
        for path, value in leaves(each):
            yield re.sub(r"\.values\..*", ".values.*", path), value


def test_every_key_of_a_real_document_is_on_the_page() -> None:
    assert {path for path, _ in found()} <= set(documented())


def test_every_key_on_the_page_is_in_a_real_document() -> None:
    paths = {path for path, _ in found()}
    lists = {key for key in documented() if any(path.startswith(key) for path in paths)}
    assert set(documented()) <= paths | lists | {"targets[].missing_metrics[]"}


@pytest.mark.parametrize("optional", ["null", "absent"])
def test_what_may_be_missing_is_marked(optional: str) -> None:
    types = documented()
    if optional == "null":
        assert {path for path, value in found() if value is None} <= {
            path for path, kind in types.items() if "null" in kind
        }
        return
    for each in documents():
        for path, entries in _entries(each):
            always = {
                key.removeprefix(f"{path}.").split(".")[0].split("[")[0]
                for key, kind in types.items()
                if key.startswith(f"{path}.") and "absent" not in kind
            }
            assert all(always <= set(entry) for entry in entries)


def _entries(document: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    targets = document["targets"]
    yield "targets[]", targets
    yield "gpus[]", document["gpus"]
    for name in ("memory_terms", "arguments", "sources", "engines"):
        yield f"targets[].{name}[]", [each for t in targets for each in t[name]]


@pytest.mark.parametrize("path", ["targets[]", "targets[].engines[]"])
def test_values_hold_metrics_of_the_catalogue_alone(path: str) -> None:
    keys = {key_of(row) for row in CATALOGUE if is_in_values(row)}
    for each in documents():
        for where, entries in _entries(each):
            if where == path:
                assert all(set(entry["values"]) <= keys for entry in entries)


def test_headings_are_listed_at_the_top() -> None:
    text = DOCS.read_text(encoding="utf-8")
    listed = re.findall(r"^- \[([^\]]+)\]\(#", text, re.MULTILINE)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert listed == headings


def test_the_documents_differ_in_what_they_know() -> None:
    assert all(one != other for one, other in pairwise(documents()))
