"""The processes of a genuine vLLM, as this machine shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_capacity.observe.command_line import flag_value
from vllm_capacity.sources.processes import Processes

if TYPE_CHECKING:
    from harness import Server

pytestmark = pytest.mark.real


def test_its_server_and_its_core_are_found_by_the_port(vllm: Server) -> None:
    found = Processes().engine_of(vllm.url)
    server, *rest = found.processes
    assert found.local is True
    assert flag_value(server.arguments, "max-num-seqs") == "12"
    assert any(p.arguments[:1] == ("VLLM::EngineCore",) for p in rest)
    assert all(process.is_vllm for process in found.processes)
