"""What an upgrade of the `tinker` SDK has broken, said in so many words."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging

import httpx
import pytest
import tinker
from support.faulty_service import Fault, FaultyService, refused

from tinker_utils.data.tokenizers import hub_tokenizer
from tinker_utils.errors import ServiceError
from tinker_utils.service import compat
from tinker_utils.service.client import connect

pytestmark = pytest.mark.usefixtures("key")
BROKEN = f"tinker {importlib.metadata.version('tinker')} has changed: mend tinker_utils/service/compat.py. "


def test_the_sdk_is_one_that_was_tested():
    assert importlib.metadata.version("tinker").startswith("0.38."), BROKEN + "Then widen the range in pyproject.toml."


def test_it_has_an_address_of_its_own():
    assert httpx.URL(compat.hosted_address()).host.endswith("thinkingmachines.dev"), BROKEN


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tinker._base_client", "_default_pyqwest_transport"),
        ("tinker._base_client", "AsyncHttpxClientWrapper"),
        ("tinker.lib.internal_client_holder", "resolve_auth_provider"),
        ("httpx", "AsyncClient._send_single_request"),
    ],
)
def test_what_keys_are_guarded_by_is_there(module, name):
    """If it is not, the guard is set up all the same, and guards nothing; test_address.py has what it does."""
    found = importlib.import_module(module)
    for each in name.split("."):
        found = getattr(found, each, None)
    assert callable(found), f"{BROKEN}There is no {module}.{name}."


def test_a_models_polls_tell_an_observer(config, service):
    client = service.new_model(config)._client
    assert hasattr(client, "_queue_state_logger"), BROKEN + "A model has no _queue_state_logger."
    assert callable(getattr(client._queue_state_logger, "on_queue_state_change", None)), BROKEN


def test_each_response_to_a_model_is_seen_and_the_http_logger_is_left_as_it_was(
    config, service, local_service, tmp_path
):
    level, filters = logging.getLogger("httpx").level, list(logging.getLogger("httpx").filters)
    assert type(service._client.holder._default_auth).async_auth_flow, BROKEN
    seen = []
    with FaultyService(local_service.base_url) as faulty:
        faulty.faults = [Fault("create_model", refused(503), times=1)]
        client = tinker.ServiceClient(base_url=faulty.base_url, api_key=local_service.api_key)
        compat.observe_responses(client, lambda response: seen.append((response.url.path, response.status_code)))
        client.create_lora_training_client("tiny", rank=4).result()
        client.close("success").result()
    assert ("/api/v1/create_model", 503) in seen, BROKEN + "A refusal was not seen."
    assert ("/api/v1/create_model", 200) in seen, BROKEN + "A response was not seen."
    with connect(config, tmp_path):
        assert (logging.getLogger("httpx").level, logging.getLogger("httpx").filters) == (level, filters)


@pytest.mark.parametrize(
    "name", ["APIConnectionError", "APITimeoutError", "AuthenticationError", "PermissionDeniedError"]
)
def test_the_errors_that_failures_are_told_apart_by_are_there(name):
    assert issubclass(getattr(tinker, name, type(None)), tinker.TinkerError), f"{BROKEN}There is no tinker.{name}."


def test_the_errors_that_it_hands_out_of_private_modules_have_their_names():
    from tinker.lib.retryable_exception import RetryableException

    assert RetryableException.__name__ == "RetryableException", BROKEN
    assert tinker.RequestFailedError.__name__ == "RequestFailedError", BROKEN


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B:peft:262144",
        "Qwen/Qwen3.5-4B/base:peft:65536",
        "meta-llama/Llama-3.1-8B-Instruct",
        "moonshotai/Kimi-K2-Thinking",
        "moonshotai/Kimi-K2.5:peft:131072",
        "moonshotai/Kimi-K2.5-Text-Only",
        "moonshotai/Kimi-K2.6",
        "moonshotai/Kimi-K3",
        "thinkingmachines/Inkling",
        "TML/something",
    ],
)
def test_tokenizers_are_those_that_the_sdk_takes(model, monkeypatch):
    """Only where a tokenizer is fetched from is looked at: the hub is out of a test's reach."""
    from tinker.lib.public_interfaces import sampling_client
    from transformers import AutoTokenizer

    fetched = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, **options: fetched.append((name, options)))
    sampling_client._load_tokenizer_from_model_info.cache_clear()
    try:
        sampling_client._load_tokenizer_from_model_info(model)
    except RuntimeError:
        with pytest.raises(ServiceError, match="a tokenizer of its own"):
            hub_tokenizer(model)
        return
    finally:
        sampling_client._load_tokenizer_from_model_info.cache_clear()
    ((name, options),) = fetched
    assert hub_tokenizer(model) == (name, {key: options[key] for key in options if key != "fast"}), BROKEN + (
        "The rules for tokenizers are in tinker_utils/data/tokenizers.py."
    )
