"""The embedded service for the tests: started once, and small tools to talk to it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
from tinker import types

from tinker_utils.local import start_local_service
from tinker_utils.local.server.model_source import PACKAGED_DIRECTORY, PACKAGED_NAME

MODEL = PACKAGED_NAME
MODEL_DIRECTORY = PACKAGED_DIRECTORY


class Running(NamedTuple):
    """A running service: where it is, its key, and its store."""

    base_url: str
    api_key: str
    store: Path


@pytest.fixture(scope="session")
def local_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The real server, as a process of its own, for all tests of the session."""
    store = tmp_path_factory.mktemp("local") / "store"
    with start_local_service(MODEL, store, threads=1) as service:
        yield Running(service.base_url, service.api_key, store)


def service_client(running: Running) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=running.base_url, api_key=running.api_key)


def rest_client(running: Running) -> tinker.RestClient:
    return tinker.RestClient(base_url=running.base_url, api_key=running.api_key)


def random_data(seed: int, lengths: Sequence[int] = (7, 19, 12), vocabulary: int = 500) -> list[types.Datum]:
    """Rows of random tokens, of which the last two thirds weigh something."""
    rng = np.random.default_rng(seed)
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(rng.integers(0, vocabulary, length).tolist()),
            loss_fn_inputs={
                "target_tokens": rng.integers(0, vocabulary, length),
                "weights": (np.arange(length) >= length // 3) * rng.uniform(0.1, 1, length).astype(np.float32),
            },
        )
        for length in lengths
    ]


def logprobs(output: types.ForwardBackwardOutput) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(row["logprobs"].data, np.float32) for row in output.loss_fn_outputs]


def post(running: Running, endpoint: str, body: Any, content_type: str = "application/json", **headers: str) -> Any:
    """POST to the service without the SDK: (status, decoded JSON, or bytes where it is none)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(running, "POST", f"/api/v1/{endpoint}", data, {"Content-Type": content_type, **headers})


def retrieve(running: Running, answer: dict[str, Any]) -> Any:
    """What a request came to, as `post` gives it, by the answer that took it in; 408 says to ask again."""
    while (found := post(running, "retrieve_future", {"request_id": answer["request_id"]}))[0] == 408:
        pass
    return found


def call(
    running: Running, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
) -> Any:
    """One request, with the key unless `headers` has another."""
    request = urllib.request.Request(
        running.base_url + path, data, {"X-API-Key": running.api_key, **(headers or {})}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content
