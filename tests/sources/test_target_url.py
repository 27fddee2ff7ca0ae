import pytest

from vllm_capacity.errors import SettingsError
from vllm_capacity.sources.target_url import parse_target_url


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/metrics", "http://h:8000"),
        ("http://h:8000/metrics/", "http://h:8000"),
        ("h:8000", "http://h:8000"),
        ("h:8000/metrics", "http://h:8000"),
        ("localhost", "http://localhost"),
        (" h:8000 ", "http://h:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("https://proxy/team/vllm", "https://proxy/team/vllm"),
        ("https://proxy/team/vllm/metrics", "https://proxy/team/vllm"),
        ("https://user:pass@proxy/x", "https://proxy/x"),
        ("user:pass@h:8000", "http://h:8000"),
    ],
)
def test_every_way_to_name_a_server_means_its_base(typed: str, base: str) -> None:
    assert parse_target_url(typed).base == base


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "must be http or https with a host"),
        ("http://", "must be http or https with a host"),
        ("ftp://h", "must be http or https with a host"),
        ("h:port", "is no address"),
        ("http://h:99999", "must have a port from 1 to 65535"),
        ("http://h:8000?api_key=hunter2", "must end before ?"),
        ("http://h:8000#hunter2", "must end before ?"),
        ("http://me:hunter2@h:99999", "must have a port from 1 to 65535"),
        ("http://me:/hunter2@h:80", "must have its @ right before the host"),
        ("http://me:8/hunter2@h?x", "must have its @ right before the host"),
        ("ftp://me:hunter2@h", "must be http or https with a host"),
        ("http://me:hunter2@h:port", "is no address"),
    ],
)
def test_what_names_no_server_is_refused_without_its_secrets(typed: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_target_url(typed)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.faults)


def test_credentials_are_taken_from_the_url_decoded() -> None:
    assert parse_target_url("http://me:p%40ss@h").auth is not None
    assert parse_target_url("http://h").auth is None
