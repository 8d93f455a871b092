"""A key belongs to a host: which key arrives where, with the real SDK and servers that note it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.relay import Relay, reply

from tinker_utils.errors import ServiceError
from tinker_utils.export.adapter import export_adapter
from tinker_utils.plan.cautions import about_service
from tinker_utils.service.address import PLACEHOLDER, client_options, is_hosted
from tinker_utils.service.client import ask_for_models, connect
from tinker_utils.service.compat import hosted_address
from tinker_utils.training.checks import preflight

HOSTED = "tml-Hosted-Hosted-Hosted"
ACCESS = {"CLOUDFLARE_ACCESS_CLIENT_ID": "hosted-id", "CLOUDFLARE_ACCESS_CLIENT_SECRET": "hosted-secret"}
SECRETS = ("x-api-key", "cf-access-client-id", "cf-access-client-secret")


class Noting(Relay):
    """Notes the secrets of each request, and passes it on; `answers` has replies that it gives itself."""

    def __init__(self, target):
        super().__init__(target)
        self.seen = []
        self.answers = {}

    async def answer(self, request):
        self.seen.append((request.endpoint, *(request.headers.get(name) for name in SECRETS)))
        for part, answer in self.answers.items():
            if part in request.endpoint:
                return answer
        return await self.forward(request)

    @property
    def secrets(self):
        # What asks whether anybody is there carries none.
        return {secrets for endpoint, *secrets in map(list, self.seen) for secrets in [tuple(secrets)] if secrets[0]}


@pytest.fixture
def noting(local_service):
    with Noting(local_service.base_url) as relay:
        yield relay


@pytest.fixture(params=["variable", "command", "stored", "none"])
def hosted(request, monkeypatch, tmp_path):
    """The user has a key of the hosted service, in one of the places where the SDK looks for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    if request.param == "variable":
        monkeypatch.setenv("TINKER_API_KEY", HOSTED)
    elif request.param == "command":
        monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"echo {HOSTED}")
    elif request.param == "stored":
        stored = {"version": 1, "default": "one", "keys": {"one": {"key": HOSTED}}}
        (tmp_path / ".tinker").mkdir()
        (tmp_path / ".tinker" / "credentials.json").write_text(json.dumps(stored), encoding="utf-8")
    return request.param


def test_a_server_of_ones_own_gets_its_own_key_from_all_that_the_sdk_sends(
    hosted, key, config, noting, local_service, monkeypatch, tmp_path
):
    monkeypatch.setenv("TINKER_TELEMETRY", "1")
    there = dataclasses.replace(config, service=noting.base_url)
    assert "tiny" in ask_for_models(there)
    with connect(there, tmp_path / "store") as service:
        path = service.new_model(there).submit_save("one").result()
        assert service.sample([[5, 6, 7]], path, max_tokens=2)
        service.renew()
        service.download_adapter(path, tmp_path / "adapter")
    assert noting.secrets == {(local_service.api_key, None, None)}
    assert {"create_session", "asample", "telemetry"} <= {endpoint for endpoint, *_ in noting.seen}


@pytest.mark.parametrize("named", ["service", "TINKER_BASE_URL"])
def test_without_a_key_of_its_own_a_server_gets_none(hosted, config, noting, monkeypatch, run, named):
    there = dataclasses.replace(config, service=noting.base_url)
    if named == "TINKER_BASE_URL":
        monkeypatch.setenv("TINKER_BASE_URL", noting.base_url)
        there = dataclasses.replace(config, service="tinker")
    report = preflight(there, run.path)
    (sentence,) = (check.sentence for check in report.checks if check.name == "service")
    assert "TINKER_UTILS_SERVICE_KEY" in sentence
    assert noting.secrets == {(PLACEHOLDER, None, None)}


def test_a_server_cannot_ask_for_what_the_command_prints(config, noting, monkeypatch, tmp_path, local_service, key):
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"echo {HOSTED}")
    asking = {"pjwt_auth_enabled": True, "credential_default_source": "credential_cmd"}
    noting.answers = {"client/config": reply(200, json.dumps(asking).encode()), "auth/token": reply(401)}
    with pytest.raises(ServiceError):
        ask_for_models(dataclasses.replace(config, service=noting.base_url))
    assert ("auth/token", local_service.api_key, None, None) in noting.seen
    assert noting.secrets == {(local_service.api_key, None, None)}


def test_a_redirect_takes_neither_key_nor_data_along(config, noting, local_service, key, tmp_path):
    with Noting(local_service.base_url) as elsewhere:
        to = {"location": f"{elsewhere.base_url}/api/v1/training_runs"}
        noting.answers = {"/checkpoints": reply(302, **to), "create_model": reply(307, **to)}
        with connect(dataclasses.replace(config, service=noting.base_url), tmp_path) as service:
            with pytest.raises(ServiceError, match="it redirects to http://127.0.0.1:.*, which is not followed"):
                service.new_model(config)
            with pytest.raises(Exception, match="401"):
                service.checkpoints_of("run")
    assert [seen[1:] for seen in elsewhere.seen] == [(None, None, None)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (hosted_address(), True),
        ("https://tinker.thinkingmachines.dev", True),
        ("https://TINKER.thinkingmachines.dev:443/services/other", True),
        ("http://tinker.thinkingmachines.dev", False),
        ("https://tinker.thinkingmachines.dev:8443", False),
        ("https://tinker.thinkingmachines.dev.", False),
        ("https://tinker.thinkingmachines.dev.evil.example", False),
        ("https://tinker.thinkingmachines.dev@evil.example", False),
        ("https://evil.example/tinker.thinkingmachines.dev", False),
        ("https://thinkingmachines.dev", False),
        ("https://a.tinker.thinkingmachines.dev", False),
        ("https://127.0.0.1", False),
    ],
)
def test_only_the_hosted_services_very_host_gets_its_key(config, monkeypatch, url, expected):
    monkeypatch.setenv("TINKER_API_KEY", HOSTED)
    assert is_hosted(url) is expected
    if "@" in url:
        monkeypatch.setenv("TINKER_BASE_URL", url)
        with pytest.raises(ServiceError, match="TINKER_BASE_URL: .* without a key"):
            client_options(dataclasses.replace(config, service="tinker"))
        return
    options = client_options(dataclasses.replace(config, service=url))
    # Without a key in them the SDK takes the hosted service's.
    assert options == {"base_url": url} | ({} if expected else {"api_key": PLACEHOLDER})


@pytest.mark.parametrize("signs", ["\n", "\r\n", " ", "\r", "\x0b", "é", "\u2028", "\x7f"])
@pytest.mark.parametrize("variable", ["TINKER_API_KEY", "TINKER_UTILS_SERVICE_KEY"])
def test_a_key_that_no_request_can_carry_is_refused_at_once(config, local_service, monkeypatch, variable, signs):
    for key in (f"tml-Canary-0123{signs}", f"tml-Canary{signs}0123"):
        monkeypatch.setenv(variable, key)
        service = "tinker" if variable == "TINKER_API_KEY" else local_service.base_url
        with pytest.raises(ServiceError, match=f"^{variable}: is no key") as refused:
            ask_for_models(dataclasses.replace(config, service=service))
        assert "Canary" not in str(refused.value)


def test_what_the_command_prints_is_looked_at_too(config, monkeypatch):
    """It is run at each request, and nothing is sent with such a key."""
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", r"printf 'tml-Canary\n0123'")
    with pytest.raises(ServiceError, match="what TINKER_CREDENTIAL_CMD prints is no key") as refused:
        ask_for_models(dataclasses.replace(config, service="tinker"))
    assert "Canary" not in str(refused.value)


def test_a_key_of_another_form_does_not_have_the_sdk_look_for_one(config, noting, monkeypatch):
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"echo {HOSTED}")
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", "sk-Canary-0123456789")
    with pytest.raises(ServiceError, match="TINKER_UTILS_SERVICE_KEY: is no key, which .* begins with tml-"):
        ask_for_models(dataclasses.replace(config, service=noting.base_url))
    assert noting.secrets == set()


def test_plain_http_beyond_this_machine_gets_no_key_and_one_warning(config, monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", "tml-Own-Own-Own")
    there = dataclasses.replace(config, service="http://192.0.2.1:9")
    assert client_options(there)["api_key"] == PLACEHOLDER
    assert client_options(config)["api_key"] == "tml-Own-Own-Own", "the loopback is this machine"
    assert client_options(dataclasses.replace(config, service="https://192.0.2.1"))["api_key"] == "tml-Own-Own-Own"
    assert [said for said in about_service(there) if "plain HTTP" in said] == [
        "http://192.0.2.1:9 is plain HTTP: whoever is on the way can read and change data and answers, and no key is "
        "sent; use https:// or a tunnel to this machine (ssh -L)."
    ]
    assert not [said for said in about_service(config) if "plain HTTP" in said]
    with pytest.warns(UserWarning, match="plain HTTP"), pytest.raises(ServiceError, match="does not answer"):
        connect(there, tmp_path)


def test_an_address_that_only_a_run_directory_names_is_asked_for(whole, noting, local_service, monkeypatch, tmp_path):
    """Neither is it believed in which variable holds the key."""
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name in ("run.json", "config.yaml"):
        text = (whole.run.path / name).read_text(encoding="utf-8")
        text = text.replace(local_service.base_url, noting.base_url)
        text = text.replace("service_key_env: TINKER_UTILS_SERVICE_KEY", "service_key_env: OTHER_SECRET")
        (downloaded / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("TINKER_API_KEY", HOSTED)
    monkeypatch.setenv("OTHER_SECRET", "tml-Other-Other-Other")
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", local_service.api_key)
    with pytest.raises(ServiceError, match=rf"names the service {noting.base_url}.*service='{noting.base_url}'"):
        export_adapter(downloaded)
    assert noting.seen == []
    adapter = export_adapter(downloaded, service=noting.base_url)
    assert (adapter / "adapter_model.safetensors").read_bytes() == whole.adapter
    assert noting.secrets == {(local_service.api_key, None, None)}
