"""Handles each request: checks it, puts the work in its lane, and says how the result is sent.

Lives on the event loop and never computes there: whatever touches tensors or checkpoints is a job for the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.logprobs import wants_weighted_only
from tinker_utils.local.protocol.lora import LoraSwitches, read_lora_metadata, resolve
from tinker_utils.local.protocol.paths import CheckpointKind, Reference, check_name
from tinker_utils.local.protocol.tensors import encode_outputs
from tinker_utils.local.server.model_source import Served
from tinker_utils.local.server.samplers import Samplers, trained_here
from tinker_utils.local.server.scheduler import Job, Lanes, Result, Worker
from tinker_utils.local.server.sessions import (
    HEARTBEAT_LIMIT_S,
    IDLE_LIMIT_S,
    MAX_MODELS,
    Session,
    SessionModel,
    Sessions,
)
from tinker_utils.local.store.checkpoint import CheckpointInfo, expiry
from tinker_utils.local.store.store import Store

RETRIEVE_TIMEOUT_S = 30.0
"""A poll waits so long for a result; the SDK gives up after 45 s and polls again."""

_SILENT = (
    f"What was queued was dropped, because its client sent nothing for {HEARTBEAT_LIMIT_S} seconds, not even a "
    "heartbeat: go on from the latest checkpoint."
)


class Handlers:
    """The state behind the HTTP endpoints.

    Args:
        engine: what computes.
        store: where checkpoints are.
        served: the model that is offered.
        worker: where it computes; None starts a thread for that.
    """

    def __init__(self, engine: Engine, store: Store, served: Served, worker: Worker | None = None) -> None:
        self.engine = engine
        self.store = store
        self.served = served
        self.sessions = Sessions()
        self.worker = worker or Worker.started()
        self.lanes = Lanes(self.worker)
        self.samplers = Samplers(engine, store, served, self.sessions, self.lanes)

    def create_model(self, request: requests.CreateModelRequest) -> dict[str, Any]:
        """Make a model; its id follows from the session and the client's own count, as the SDK derives it, too."""
        _check_optimizer(request.optimizer_config)
        if request.lora_config is None:
            raise RequestError("create_model needs a lora_config: this service trains LoRA adapters only.")
        base_model = self.served.check(request.base_model)
        metadata = dict(request.user_metadata or {})
        switches = LoraSwitches(**request.lora_config.model_dump())
        spec = resolve(base_model, switches, read_lora_metadata(metadata), self.engine.base.linear_modules)
        session = self.sessions.open(request.session_id)

        def job(model: SessionModel) -> Result:
            self.engine.create(model.model_id, spec)
            model.spec = spec
            return Result.json({"type": "create_model", "model_id": model.model_id})

        return self._new_model(session, request.model_seq_id, metadata, job)

    def load_weights(self, request: requests.LoadWeightsRequest) -> dict[str, Any]:
        """Load a checkpoint into a model, or make a model of it."""
        reference = Reference.from_path(request.path)
        if request.session_id is not None and request.model_seq_id is not None:
            return self._create_from(request, reference, request.session_id, request.model_seq_id)
        if request.model_id is None or request.seq_id is None:
            raise RequestError("load_weights needs either model_id and seq_id, or session_id and model_seq_id.")
        model = self.sessions.model(request.model_id)

        def job() -> Result:
            self.engine.load(model.model_id, trained_here(self.store, self.served, reference), request.optimizer)
            return Result.json({"type": "load_weights", "path": request.path, "model_id": model.model_id})

        return self._submit(model, request.seq_id, job)

    def get_info(self, request: requests.GetInfoRequest) -> dict[str, Any]:
        """Return a model's base model, tokenizer and rank."""
        model = self.sessions.model(request.model_id)
        if model.spec is None:
            raise RequestError(f"The model {model.model_id} has not been created yet, or its creation failed.", 404)
        return {
            "type": "get_info",
            "model_data": {
                "arch": self.engine.base.model.config.model_type,
                "model_name": model.spec.base_model,
                "tokenizer_id": self.engine.base.source,
            },
            "model_id": model.model_id,
            "is_lora": True,
            "lora_rank": model.spec.rank,
            "model_name": model.spec.base_model,
        }

    def forward_backward(self, request: Any) -> dict[str, Any]:
        """Compute a batch's loss, and its gradient; `request` is the parsed protobuf message."""
        model = self.sessions.model(request.model_id)
        if request.seq_id < 1:
            raise RequestError(f"seq_id must be at least 1, but it is {request.seq_id}.", 422)

        def job() -> Result:
            output = self.engine.forward_backward(model.model_id, request, model.weighted_only)
            return Result(encode_outputs(output.logprobs, {"loss:sum": output.loss}))

        return self._submit(model, request.seq_id, job)

    def optim_step(self, request: requests.OptimStepRequest) -> dict[str, Any]:
        """Take an optimizer step."""
        model = self.sessions.model(request.model_id)
        params = request.adam_params
        if params is None:
            raise RequestError("optim_step needs adam_params: AdamW is the only optimizer of this service.")

        def job() -> Result:
            return Result.json({"metrics": self.engine.optim_step(model.model_id, params)})

        return self._submit(model, request.seq_id, job)

    def save_weights(self, request: requests.SaveWeightsRequest) -> dict[str, Any]:
        """Save weights and optimizer, to train on from."""
        return self._save(request, "weights", overwrite=request.overwrite, metadata=request.user_metadata)

    def save_weights_external(self, request: requests.SaveWeightsExternalRequest) -> dict[str, Any]:
        """Save an adapter to download."""
        if request.age_encryption_recipients:
            raise RequestError("This service does not encrypt: leave age_encryption_recipients out.")
        return self._save(request, "external_weights")

    def save_weights_for_sampler(self, request: requests.SaveWeightsForSamplerRequest) -> dict[str, Any]:
        """Save weights to sample from: under a name, or, without one, for one new sampler while the session lasts."""
        if request.path is not None:
            return self._save(request, "sampler_weights", metadata=request.user_metadata)
        if request.sampling_session_seq_id is None:
            raise RequestError("save_weights_for_sampler needs either path or sampling_session_seq_id.")
        model = self.sessions.model(request.model_id)
        session = self.sessions.open(model.session_id)
        return self._submit(
            model, request.seq_id, self.samplers.snapshot(session, model, request.sampling_session_seq_id)
        )

    def finish(self, session: Session, reason: str) -> None:
        """End a session: its models and samplers go, its checkpoints stay."""
        session.finished = True
        for model_id in list(session.models):
            self._drop(session, model_id, reason)
        self.samplers.close(session, reason)

    def finish_all(self, reason: str) -> None:
        """End every session, and open no other."""
        self.sessions.ending = reason
        for session in self.sessions.all():
            if not session.finished:
                self.finish(session, reason)

    def tick(self) -> None:
        """Count a second of silence for every client; drop what one has queued that is gone, and end its session later.

        A model goes with its queue: nobody could say which of its steps were taken.
        """
        for session in self.sessions.all():
            session.silent_s += 1
            if session.silent_s > IDLE_LIMIT_S and not session.finished:
                self.finish(session, "The session ended, because its client sent nothing for too long.")
        for lane_id in self.worker.queued():
            owner = self.sessions.of(lane_id)
            if owner is not None and owner.silent_s > HEARTBEAT_LIMIT_S:
                if lane_id in owner.models:
                    self._drop(owner, lane_id, _SILENT)
                elif lane_id in owner.samplers:
                    self.samplers.drop(lane_id, _SILENT)

    def _drop(self, session: Session, model_id: str, reason: str) -> None:
        del session.models[model_id]
        self.lanes.close(model_id, reason)
        self.worker.submit(model_id, self._unload(model_id), lambda result: None)

    def _new_model(
        self, session: Session, number: int, metadata: dict[str, str], job: Callable[[SessionModel], Result]
    ) -> dict[str, Any]:
        model_id = f"{session.session_id}:train:{number}"
        if model_id not in session.models:
            if len(session.models) >= MAX_MODELS:
                raise RequestError(f"The session has {MAX_MODELS} models already: open another session.")
            weighted_only = wants_weighted_only(metadata)
            session.models[model_id] = SessionModel(model_id, session.session_id, metadata, weighted_only)
            self.lanes.open(model_id)
        model = session.models[model_id]
        return self._submit(model, 0, lambda: job(model))

    def _create_from(
        self, request: requests.LoadWeightsRequest, reference: Reference, session_id: str, number: int
    ) -> dict[str, Any]:
        if request.optimizer_config is not None:
            _check_optimizer(request.optimizer_config)
        if request.base_model is not None:
            self.served.check(request.base_model)
        session = self.sessions.open(session_id)
        metadata = dict(request.user_metadata or {})
        wishes = read_lora_metadata(metadata)

        def job(model: SessionModel) -> Result:
            checkpoint = trained_here(self.store, self.served, reference)
            spec = checkpoint.info.lora
            wishes.check_agrees(spec.alpha, spec.dropout, spec.target_modules)
            self.engine.create_from(model.model_id, checkpoint, request.optimizer)
            model.spec = spec
            return Result.json({"type": "load_weights", "path": request.path, "model_id": model.model_id})

        return self._new_model(session, number, metadata, job)

    def _save(
        self,
        request: requests.SaveWeightsRequest
        | requests.SaveWeightsForSamplerRequest
        | requests.SaveWeightsExternalRequest,
        kind: CheckpointKind,
        overwrite: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        model = self.sessions.model(request.model_id)
        reference = Reference(model.model_id, kind, check_name(request.path or ""))
        # Checked at once, although the time to live begins when the checkpoint is made.
        expiry(0, request.ttl_seconds)

        def job() -> Result:
            created = self.store.clock.latest()
            info = CheckpointInfo(
                reference=reference,
                created=created,
                expires=expiry(created, request.ttl_seconds),
                lora=self.engine.spec(model.model_id),
                progress=self.engine.progress(model.model_id),
                has_optimizer=kind == "weights",
                user_metadata=None if metadata is None else dict(metadata),
                run_metadata=model.user_metadata,
            )
            self.store.prune()
            with self.store.writing(info, overwrite) as directory:
                self.engine.write(model.model_id, directory, info.has_optimizer)
            return Result.json({"type": request.type, "path": reference.path})

        return self._submit(model, request.seq_id, job)

    def _unload(self, model_id: str) -> Job:
        def job() -> Result:
            self.engine.unload(model_id)
            return Result.json({})

        return job

    def _submit(self, model: SessionModel, sequence: int, job: Job) -> dict[str, Any]:
        request_id = self.lanes.submit(model.model_id, sequence, job)
        return {"request_id": request_id, "model_id": model.model_id}


def _check_optimizer(config: requests.OptimizerConfig) -> None:
    if config.type != "adamw":
        raise RequestError(f"The optimizer {config.type[:80]!r} is not supported: use adamw.")
