"""The loopback is reached directly, whatever proxy the environment names."""

from __future__ import annotations

import dataclasses
import socket
import threading

import httpx
import pytest

from tinker_utils.config.address import is_loopback
from tinker_utils.errors import ServiceError
from tinker_utils.export.openai_server import OpenAIServer
from tinker_utils.service.address import reach_loopback_directly
from tinker_utils.service.client import ask_for_models, connect
from tinker_utils.service.download import fetch_adapter

pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that refuses whoever connects, and notes it; the environment sends everything there."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                asked.append(connection.recv(4096))
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "example.org")
        monkeypatch.setenv("NO_PROXY", "")
        yield asked
        listening.close()


@pytest.mark.parametrize("embedded", [True, False])
def test_nothing_of_a_local_service_goes_through_a_proxy(config, tmp_path, proxy, embedded):
    there = dataclasses.replace(config, service="local") if embedded else config
    if not embedded:
        assert "tiny" in ask_for_models(there)
    with connect(there, tmp_path / "store") as service:
        model = service.new_model(there)
        assert service.sample([[5, 6, 7]], model.submit_save("one").result(), max_tokens=2)
    assert proxy == []


_OWN = "127.0.0.1 127.0.0.2 localhost [::1] localhost. 127.1 2130706433 0x7f000001 0.0.0.0 [::] [::ffff:127.0.0.1]"
_ELSEWHERE = "127.1.example.org localhost.example.org 128.1 [::2] [::ffff:10.0.0.1]"


@pytest.mark.parametrize("host", _OWN.split())
def test_no_address_of_this_machine_goes_through_a_proxy(config, proxy, host, tmp_path, monkeypatch):
    """Nothing listens there: only the proxy could be reached."""
    url = f"http://{host}:1"
    monkeypatch.setenv("TINKER_UTILS_SERVED_KEY", "sk-Canary-Served-0123")
    for ask in (
        lambda: connect(dataclasses.replace(config, service=url), tmp_path),
        lambda: OpenAIServer(url, "TINKER_UTILS_SERVED_KEY").only_adapter(),
        lambda: fetch_adapter(dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), url), url, tmp_path),
    ):
        with pytest.raises(ServiceError):
            ask()
    reach_loopback_directly(url)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert proxy == []


@pytest.mark.parametrize("host", _ELSEWHERE.split())
def test_any_other_address_is_elsewhere(host):
    assert not is_loopback(f"http://{host}:1")
