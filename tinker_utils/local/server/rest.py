"""The calls of the SDK's RestClient: runs, checkpoints, sessions, samplers, and downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tinker_utils.local.engine.engine import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import CHECKPOINT_TYPES, Reference
from tinker_utils.local.server.connections import let_in
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.security import DOWNLOAD_PREFIX, Signer, read_body
from tinker_utils.local.server.sessions import SessionModel
from tinker_utils.local.store.checkpoint import CheckpointInfo

DOWNLOAD_VALID_S = 3600
_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
_MAX_PAGE = 1000


class Rest:
    """Reads and changes what is stored; `base_url` is where downloads are offered."""

    def __init__(self, handlers: Handlers, signer: Signer, base_url: str) -> None:
        self._handlers = handlers
        self._store = handlers.store
        self._signer = signer
        self._base_url = base_url

    def routes(self) -> list[Route]:
        """Return every endpoint of this class."""
        run, checkpoint = "/training_runs/{run_id}", "/training_runs/{run_id}/checkpoints/{kind}/{name}"
        return [
            _route("GET", "/healthz", self.health),
            _route("GET", "/get_server_capabilities", self.capabilities),
            _route("POST", "/weights_info", self.weights_info),
            _route("GET", "/training_runs", self.runs),
            _route("GET", run, self.run),
            _route("GET", f"{run}/checkpoints", self.run_checkpoints),
            _route("DELETE", checkpoint, self.delete),
            _route("PUT", f"{checkpoint}/ttl", self.set_ttl),
            _route("GET", f"{checkpoint}/external_weights_urls", self.download_urls),
            _route("GET", "/checkpoints", self.checkpoints),
            _route("GET", "/sessions", self.sessions),
            _route("GET", "/sessions/{session_id}", self.session),
            _route("POST", "/sessions/{session_id}/finish", self.finish_session),
            _route("GET", "/samplers/{sampler_id}", self.sampler),
            Route(DOWNLOAD_PREFIX + "{run_id}/{name}/{file}", self.download, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """Say that the service is up."""
        return _reply({"status": "ok"})

    async def capabilities(self, request: Request) -> Response:
        """Return the names that the base model is served under."""
        length = self._handlers.engine.base.max_length
        facts = {"max_context_length": length, "trainable": True, "sampleable": True}
        return _reply({"supported_models": [{"model_name": name, **facts} for name in self._handlers.served.names]})

    async def weights_info(self, request: Request) -> Response:
        """Return what a checkpoint was trained from, if its adapter is what was saved."""
        message = requests.decode(requests.WeightsInfoRequest, await read_body(request))
        checkpoint = await run_in_threadpool(self._store.read, Reference.from_path(message.tinker_path))
        await run_in_threadpool(checkpoint.file, ADAPTER_FILE)
        spec = checkpoint.info.lora
        switches = {key: getattr(spec, key) for key in ("train_attn", "train_mlp", "train_unembed")}
        return _reply({"base_model": spec.base_model, "is_lora": True, "lora_rank": spec.rank, **switches})

    async def runs(self, request: Request) -> Response:
        """Return training runs, the latest first: those that are open, and those that left checkpoints."""
        runs = sorted(await self._runs(), key=lambda run: str(run["last_request_time"]), reverse=True)
        return _reply(_page(request, "training_runs", runs))

    async def run(self, request: Request) -> Response:
        """Return one training run."""
        run_id = request.path_params["run_id"]
        for run in await self._runs():
            if run["training_run_id"] == run_id:
                return _reply(run)
        raise RequestError(f"There is no training run {run_id[:120]}.", 404)

    async def run_checkpoints(self, request: Request) -> Response:
        """Return the checkpoints of one run."""
        run_id = Reference(request.path_params["run_id"], "weights", "_").run_id
        found = await run_in_threadpool(self._store.list, run_id)
        return _reply({"checkpoints": [describe_checkpoint(info) for info in found]})

    async def checkpoints(self, request: Request) -> Response:
        """Return the checkpoints of all runs."""
        found = await run_in_threadpool(self._store.list)
        return _reply(_page(request, "checkpoints", [describe_checkpoint(info) for info in found]))

    async def delete(self, request: Request) -> Response:
        """Delete a checkpoint."""
        await run_in_threadpool(self._store.delete, _reference(request))
        return Response(status_code=204)

    async def set_ttl(self, request: Request) -> Response:
        """Change when a checkpoint expires."""
        message = requests.decode(requests.SetTtlRequest, await read_body(request))
        await run_in_threadpool(self._store.set_ttl, _reference(request), message.ttl_seconds)
        return Response(status_code=204)

    async def download_urls(self, request: Request) -> Response:
        """Return signed addresses of an external checkpoint's files: a PEFT adapter."""
        reference = _reference(request)
        if reference.kind != "external_weights":
            raise RequestError(f"Only external_weights can be downloaded, but {reference.path} is of another kind.")
        await run_in_threadpool(self._store.read, reference)
        expires = int(self._store.clock.latest()) + DOWNLOAD_VALID_S
        urls = {file: self._signed_url(reference, file, expires) for file in _FILES}
        return _reply({"urls": urls, "expires": _time(expires)})

    async def download(self, request: Request) -> Response:
        """Return a file of an external checkpoint, for whoever has its signed address."""
        params, query = request.path_params, request.query_params
        run_id, name, file = params["run_id"], params["name"], params["file"]
        # Before anything else: without a signature nobody learns what is known here.
        signed = f"{run_id}/{name}/{file}"
        self._signer.check(signed, query.get("expires", ""), query.get("signature", ""), self._store.clock.earliest())
        let_in(request.scope)
        reference = Reference(run_id, "external_weights", name)
        if file not in _FILES:
            raise RequestError(f"An adapter has the files {' and '.join(_FILES)} only.", 404)
        checkpoint = await run_in_threadpool(self._store.read, reference)
        return FileResponse(await run_in_threadpool(checkpoint.file, file), media_type="application/octet-stream")

    async def sessions(self, request: Request) -> Response:
        """Return the ids of all sessions, the newest first."""
        ids = [session.session_id for session in reversed(self._handlers.sessions.all())]
        return _reply({"sessions": _page(request, "sessions", ids)["sessions"]})

    async def session(self, request: Request) -> Response:
        """Return the models and samplers of a session."""
        session = self._handlers.sessions.known(request.path_params["session_id"])
        return _reply(
            {
                "training_run_ids": list(session.models),
                "sampler_ids": list(session.samplers),
                "user_metadata": session.user_metadata,
                "display_name": session.display_name,
            }
        )

    async def finish_session(self, request: Request) -> Response:
        """End a session; ending it twice changes nothing."""
        requests.decode(requests.FinishSessionRequest, await read_body(request))
        session = self._handlers.sessions.known(request.path_params["session_id"])
        if not session.finished:
            self._handlers.finish(session, f"The session {session.session_id} has ended.")
        return Response(status_code=204)

    async def sampler(self, request: Request) -> Response:
        """Return what a sampler draws from."""
        sampler = self._handlers.sessions.sampler(request.path_params["sampler_id"])
        facts = {"sampler_id": sampler.sampler_id, "base_model": sampler.base_model, "model_path": sampler.model_path}
        return _reply(facts)

    async def _runs(self) -> Iterable[dict[str, Any]]:
        models = [model for session in self._handlers.sessions.all() for model in session.models.values()]
        runs = {model.model_id: _open_run(model, model.spec) for model in models if model.spec is not None}
        for info in await run_in_threadpool(self._store.list):
            run = runs.setdefault(info.reference.run_id, _stored_run(info))
            key = {"weights": "last_checkpoint", "sampler_weights": "last_sampler_checkpoint"}.get(info.reference.kind)
            if key is not None:
                run.setdefault(key, describe_checkpoint(info))
        return runs.values()

    def _signed_url(self, reference: Reference, file: str, expires: int) -> str:
        signature = self._signer.sign(f"{reference.run_id}/{reference.name}/{file}", expires)
        path = f"{DOWNLOAD_PREFIX}{quote(reference.run_id)}/{reference.name}/{file}"
        return f"{self._base_url}{path}?expires={expires}&signature={signature}"


def _route(method: str, path: str, endpoint: Callable[[Request], Any]) -> Route:
    return Route(f"/api/v1{path}", endpoint, methods=[method])


def _reply(data: Mapping[str, Any]) -> Response:
    return Response(json.dumps(data), media_type="application/json")


def _reference(request: Request) -> Reference:
    params = request.path_params
    return Reference(params["run_id"], params["kind"], params["name"])


def _open_run(model: SessionModel, spec: LoraSpec) -> dict[str, Any]:
    return _run(model.model_id, spec, model.last_request, model.user_metadata)


def _stored_run(info: CheckpointInfo) -> dict[str, Any]:
    return _run(info.reference.run_id, info.lora, info.created, info.run_metadata)


def _run(run_id: str, spec: LoraSpec, last_request: float, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {
        "training_run_id": run_id,
        "base_model": spec.base_model,
        "model_owner": "local",
        "is_lora": True,
        "lora_rank": spec.rank,
        "last_request_time": _time(last_request),
        "user_metadata": dict(metadata),
    }


def describe_checkpoint(info: CheckpointInfo) -> dict[str, Any]:
    """Return what the SDK is told of a checkpoint."""
    return {
        "checkpoint_id": info.reference.checkpoint_id,
        "checkpoint_type": CHECKPOINT_TYPES[info.reference.kind],
        "time": _time(info.created),
        "tinker_path": info.reference.path,
        "size_bytes": info.size_bytes,
        "public": False,
        "user_metadata": info.user_metadata,
        "expires_at": None if info.expires is None else _time(info.expires),
    }


def _page(request: Request, key: str, items: list[Any]) -> dict[str, Any]:
    limit, offset = (_count(request, name, default) for name, default in (("limit", 100), ("offset", 0)))
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return {key: items[offset : offset + min(limit, _MAX_PAGE)], "cursor": cursor}


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(f"The parameter {name} must be a whole number from 0, but it is {text[:40]!r}.")
    return int(text)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
