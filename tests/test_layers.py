"""The architecture: who may import whom. This table is the architecture document."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vllm_capacity"

# folder or module → what of ours it may import; "" stands for units, errors and secrecy
MAY_IMPORT = {
    "predict": {""},
    "observe": {""},
    "simulate": {""},
    "compare": {"", "predict", "observe"},
    "sources": {"", "observe"},
    "export": {"", "compare", "observe", "predict"},
    "setting_values": {""},
    "target_settings": {"", "predict", "setting_values"},
    "settings": {"", "predict", "setting_values", "target_settings"},
    "logs": {""},
    "deployment": {"", "predict", "observe", "compare"},
    "startup_watch": {"", "observe", "predict", "calibrate"},
    "calibrate": {"", "predict", "observe"},
    "source_watch": {"", "compare"},
    "monitor": {
        *("", "predict", "observe", "compare", "sources"),
        *("deployment", "target_settings", "source_watch", "startup_watch"),
    },
    "process_watch": {"", "observe", "compare", "target_settings"},
    "gpu_monitor": {"", "predict", "observe", "compare", "deployment", "source_watch"},
    "status": {"", "predict", "observe", "compare", "export"},
    "web": {"", "predict", "compare", "export", "status"},
    "fleet_watch": {
        *("", "predict", "observe", "compare", "sources", "simulate"),
        *("settings", "target_settings", "monitor", "gpu_monitor", "deployment", "startup_watch"),
        "process_watch",
    },
    "daemon": {"", "settings", "fleet_watch", "export", "status", "web"},
    "top": {"", "status"},
    "terminal": {""},
    "status_feeds": {
        *("", "compare", "settings", "target_settings", "sources", "fleet_watch", "status", "top"),
    },
    "commands": {
        *("", "predict", "observe", "compare", "sources", "export", "simulate"),
        *("settings", "setting_values", "logs", "monitor", "deployment", "daemon", "calibrate"),
        *("status", "top", "terminal", "status_feeds"),
    },
    "cli": {"", "commands"},
}
PURE = ("predict", "observe", "compare", "status", "top", "deployment", "calibrate")
NOT_IN_PURE = {
    *("apscheduler", "asyncio", "httpx", "os", "pathlib", "prometheus_client", "pynvml"),
    *("random", "socket", "starlette", "structlog", "subprocess", "threading", "time", "uvicorn"),
}
FOUNDATION = {"units", "errors", "secrecy", "__init__"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part_of(module: Path) -> str:
    return module.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def our_part(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "vllm_capacity":
        return None
    part = parts[1] if len(parts) > 1 else ""
    return "" if part in FOUNDATION or part == "__version__" else part


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(module: Path) -> None:
    part = part_of(module)
    if part in FOUNDATION:
        assert not {p for name in imports_of(module) if (p := our_part(name)) not in {None, ""}}
        return
    allowed = MAY_IMPORT[part] | {part}
    used = {p for name in imports_of(module) if (p := our_part(name)) is not None}
    assert used <= allowed


@pytest.mark.parametrize(
    "module",
    [module for module in modules() if part_of(module) in PURE],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_the_pure_parts_touch_nothing_outside(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(module)} & NOT_IN_PURE


def test_every_part_stands_in_the_table() -> None:
    assert {part_of(module) for module in modules()} - FOUNDATION == set(MAY_IMPORT)


def test_predict_and_observe_are_strangers() -> None:
    assert "observe" not in MAY_IMPORT["predict"]
    assert "predict" not in MAY_IMPORT["observe"]
