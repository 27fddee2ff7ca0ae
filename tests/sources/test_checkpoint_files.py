"""The bytes of a checkpoint's tensors, from its index or its file."""

import json
from pathlib import Path

import pytest

from vllm_capacity.sources.checkpoint_files import checkpoint_bytes


def test_the_index_says_how_many_bytes_all_shards_hold(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 16_060_522_496}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint_bytes(tmp_path) == 16_060_522_496


def test_of_a_single_file_the_header_is_left_out(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert checkpoint_bytes(tmp_path) == 8


def test_without_a_checkpoint_nothing_is_known(tmp_path: Path) -> None:
    assert checkpoint_bytes(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"metadata": 3}', '{"metadata": {"total_size": "x"}}', "[" * 100_000]
    + [f'{{"metadata": {{"total_size": {size}}}}}' for size in ("-1", "0", "1e300", "true", "NaN")],
)
def test_an_index_that_says_nothing_sensible_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert checkpoint_bytes(tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"\1", bytes(8), b"\xff" * 16])
def test_a_file_that_is_no_checkpoint_says_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    assert checkpoint_bytes(tmp_path) is None
