"""docs/web.md, held to what it says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pki import Authority
from vllm_capacity.web.config_file import read_web_config
from vllm_capacity.web.connections import LIMITS_SECONDS, MOST_CONNECTIONS
from vllm_capacity.web.limits import MOST_STREAMS
from vllm_capacity.web.security_headers import SECURITY_HEADERS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "web.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
WEB_CONFIGS = [block for block in BLOCKS if "tls_server_config" in block]
[PROMETHEUS] = [block for block in BLOCKS if "scrape_configs" in block]
[PROBE] = [block for block in BLOCKS if "livenessProbe" in block]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority.new(tmp_path)
    for name, cert, key in (
        ("server", "tls.crt", "tls.key"),
        ("client", "client.pem", "client-key.pem"),
    ):
        made = authority.signs(name)
        made.cert.rename(tmp_path / cert)
        made.key.rename(tmp_path / key)
    shutil.copy(tmp_path / "ca.pem", tmp_path / "clients.pem")
    (tmp_path / "password").write_text("secret")
    return tmp_path


@pytest.mark.parametrize("config", WEB_CONFIGS, ids=",".join)
def test_the_web_configurations_are_taken(folder: Path, config: object) -> None:
    (folder / "web.yml").write_text(yaml.safe_dump(config))
    assert read_web_config(str(folder / "web.yml")).context is not None


def test_prometheus_takes_its_configuration(folder: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(PROMETHEUS))
    done = subprocess.run(
        ["promtool", "check", "config", str(folder / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_probe_has_a_password_that_is_no_secret() -> None:
    from vllm_capacity.web.basic_auth import credentials

    [header] = PROBE["livenessProbe"]["httpGet"]["httpHeaders"]
    assert credentials(header["value"]) == (b"probe", b"probe")


def test_the_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| .+ \| (\d+) s \|$", PAGE, re.MULTILINE)
    assert sorted(map(float, rows)) == sorted(LIMITS_SECONDS.values())
    assert f"At most {MOST_CONNECTIONS} connections" in PAGE
    assert f"at most {MOST_STREAMS} event streams" in PAGE


def test_every_security_header_is_named() -> None:
    for name in set(SECURITY_HEADERS) - {"Content-Security-Policy"}:
        assert f"`{name}`" in PAGE
