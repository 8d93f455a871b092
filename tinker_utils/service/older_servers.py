"""What servers lack that were written for an older `tinker` SDK, and what makes up for it: all of it is in this module.

Tried with SkyRL 0.4.0 and TuFT 0.2.2, both written for SDK 0.25, and SDK 0.38 on this side. None of it is done for the
hosted service.

| SDK 0.38 | the server | here |
|---|---|---|
| `create_model` sends `optimizer_config` (from 0.29.1) | TuFT: 422 | `send_tolerantly`: without it, if default |
| `save_weights_for_sampler` sends `kind` | TuFT: 422 | the same |
| wants sequence ids in the promise of `asample` (from 0.26.0) | SkyRL: there are none | the same: makes some up |
| repeats `save_weights` whose answer was lost; `overwrite` | SkyRL: 409 | the same: saves under another name |
| `load_weights` by session makes the model (from 0.26.3) | both: 422 | `created_and_loaded` |
| external weights (from 0.26) | SkyRL: 405, TuFT: 404 | `archive_url` |
| sends a step's pass and its `optim_step` at once | SkyRL: may run the second first | `_Passes`: one after the other |
| | SkyRL: metrics by names of its own | `METRIC_NAMES` |
| | both: a model is gone after a restart, by a 400 or 404 | `says_model_is_gone` |
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tinker_utils.errors import ServiceError

if TYPE_CHECKING:
    import httpx
    import tinker

METRIC_NAMES = {"skyrl.ai/grad_norm": "grad_norm"}
"""What an engine calls a figure, and what metrics.jsonl does."""

# Fields that the SDK sends with every such request, and what they say unless they were asked for.
_NEW_FIELDS = {
    "create_model": ("optimizer_config", {"type": "adamw"}),
    "save_weights_for_sampler": ("kind", "snapshot"),
}
_MODEL_GONE = re.compile(r"\bModel \S+ not (loaded|found)\b|\bUnknown model\b|\bmodel not found\b", re.IGNORECASE)
_REFUSED, _TAKEN = (400, 422), 409
_NO_SUCH_CALL = (404, 405)
_PASSES = ("/forward", "/forward_backward")
_BEHIND_PASSES = ("/optim_step", "/save_weights", "/save_weights_for_sampler")
# What a poll is answered while there is no result; the SDK polls on.
_LATER = (402, 408, 429, *range(500, 600))
_logger = logging.getLogger(__name__)

Send = Callable[["httpx.Request"], Awaitable["httpx.Response"]]


class _Passes:
    """The forward passes on a server that are not answered, where the server does not keep to the order of requests.

    SkyRL's engine asks its database first for passes and then for everything else: what arrives in between, a pass and
    the optimizer step behind it, runs the wrong way round, the step without a gradient. Its promises have `future_id`.
    """

    def __init__(self) -> None:
        # Each by its request's id, with the model that it is of.
        self._unanswered: dict[str, tuple[str, asyncio.Event]] = {}

    async def wait(self, request: httpx.Request) -> None:
        """Hold a request back that must not overtake a pass."""
        if request.url.path.endswith(_BEHIND_PASSES):
            model = json.loads(request.content)["model_id"] if self._unanswered else ""
            for answered in [event for passed, event in self._unanswered.values() if passed == model]:
                await answered.wait()

    async def note(self, request: httpx.Request, response: httpx.Response) -> None:
        """Note that a pass was submitted or answered."""
        from tinker.proto import tinker_public_pb2

        messages: Any = tinker_public_pb2
        status = response.status_code
        if request.url.path.endswith(_PASSES) and status == 200:
            promise = json.loads(await _text(response))
            if "future_id" in promise:
                model = messages.ForwardBackwardRequest.FromString(request.content).model_id
                self._unanswered[promise["request_id"]] = model, asyncio.Event()
        elif self._unanswered and request.url.path.endswith("/retrieve_future") and status not in _LATER:
            found = self._unanswered.pop(json.loads(request.content)["request_id"], None)
            if found is not None:
                found[1].set()


_passes = _Passes()


async def send_tolerantly(send: Send, request: httpx.Request) -> httpx.Response:
    """Send a request; where the server does not know what it asks for and an older SDK did not ask, send that one's."""
    await _passes.wait(request)
    response = await send(request)
    await _passes.note(request, response)
    endpoint = request.url.path.rpartition("/")[2]
    if endpoint == "asample" and response.status_code == 200:
        return await _with_sequence_ids(request, response)
    if endpoint in _NEW_FIELDS and response.status_code in _REFUSED:
        field, default = _NEW_FIELDS[endpoint]
        body = json.loads(request.content)
        if field in await _text(response) and body.pop(field, None) == default:
            _logger.info("%s: without %s", endpoint, field)
            return await send(_with_body(request, body))
    if endpoint == "save_weights" and response.status_code == _TAKEN and "already exists" in await _text(response):
        body = json.loads(request.content)
        if body.get("overwrite"):
            _logger.info("save_weights: under another name")
            # The checkpoint's path says under which.
            return await send(_with_body(request, {**body, "path": f"{body['path']}-{secrets.token_hex(4)}"}))
    return response


async def _with_sequence_ids(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    import httpx

    promise = json.loads(await _text(response))
    if not isinstance(promise, dict) or promise.get("sample_sequence_ids"):
        return response
    _logger.info("asample: no sequence ids")
    count = json.loads(request.content).get("num_samples", 1)
    ids = [f"{promise.get('request_id')}-{n}" for n in range(count)]
    return httpx.Response(200, request=request, json={**promise, "sample_sequence_ids": ids})


async def _text(response: httpx.Response) -> str:
    await response.aread()
    return response.text


def _with_body(request: httpx.Request, body: dict[str, Any]) -> httpx.Request:
    import httpx

    headers = [(name, value) for name, value in request.headers.multi_items() if name.lower() != "content-length"]
    content = json.dumps(body).encode()
    return httpx.Request(request.method, request.url, headers=headers, content=content, extensions=request.extensions)


def wants_a_model(error: BaseException) -> bool:
    """Return whether loading a checkpoint was refused because the server loads into a model that is there."""
    return getattr(error, "status_code", None) in _REFUSED and "model_id" in str(error)


def created_and_loaded(
    client: tinker.ServiceClient,
    rest: tinker.RestClient,
    checkpoint: str,
    with_optimizer: bool,
    **options: Any,
) -> tinker.TrainingClient:
    """Return the model of a checkpoint as SDKs before 0.26.3 made it: a fresh one of its rank, then loaded into.

    Args:
        options: further ones of the fresh model.
    """
    _logger.info("load_weights: into a fresh model")
    info = rest.get_weights_info_by_tinker_path(checkpoint).result()
    known = {name: getattr(info, name) for name in ("train_mlp", "train_attn", "train_unembed")}
    switches = {name: value for name, value in known.items() if value is not None}
    made = client.create_lora_training_client(info.base_model, rank=info.lora_rank or 32, **switches, **options)
    model = made.result()
    # What is public warns of being deprecated, which is not for the user to read.
    model._load_state_impl(checkpoint, optimizer=with_optimizer, weights_access_token=None).result()
    return model


def lacks_call(error: BaseException) -> bool:
    """Return whether a call was refused because the server does not have it."""
    return getattr(error, "status_code", None) in _NO_SUCH_CALL


def sampler_path(path: str) -> str:
    """Return the path of saved sampler weights as the SDK's other calls take it; SkyRL leaves the kind out."""
    model, *_, name = path.removeprefix("tinker://").split("/")
    return f"tinker://{model}/sampler_weights/{name}"


def archive_url(rest: tinker.RestClient, sampler_weights: str) -> str:
    """Return where a server gives saved sampler weights as a tar archive, in PEFT's format.

    Raises:
        ServiceError: it gives none.
    """
    import httpx
    import tinker
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    _logger.info("export: by archive")
    model, _, name = sampler_weights.removeprefix("tinker://").partition("/sampler_weights/")
    holder: Any = rest.holder

    async def ask() -> Any:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as http:
            return await http.get(
                f"/api/v1/training_runs/{model}/checkpoints/{name}/archive",
                cast_to=httpx.Response,
                options={"follow_redirects": False},
            )

    try:
        response = holder.run_coroutine_threadsafe(ask()).result()
    except tinker.APIStatusError as error:
        response = error.response
    if "location" not in response.headers:
        raise ServiceError(
            f"the service has neither external weights nor an archive of {sampler_weights} (status "
            f"{response.status_code}); take the adapter from the server's own directory of checkpoints."
        )
    return str(response.headers["location"])


def says_model_is_gone(message: str) -> bool:
    """Return whether a refusal says that the model is not there: the server was started anew, or has dropped it."""
    return bool(_MODEL_GONE.search(message))
