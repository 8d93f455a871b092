"""Sampling sessions: weights that clients draw from, and what they draw.

Requests that wait for the same sampler are drawn together: whichever comes first takes the others along.
"""

from __future__ import annotations

import collections
import contextlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import ADAPTER_FILE, Engine, SavedWeights
from tinker_utils.local.engine.sampling import SampleOutput, check_query
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.paths import Reference
from tinker_utils.local.protocol.queries import SampleQuery, read_query
from tinker_utils.local.protocol.tensors import encode_samples
from tinker_utils.local.server.model_source import Served
from tinker_utils.local.server.scheduler import Job, Lanes, Result
from tinker_utils.local.server.sessions import MAX_SAMPLERS, Sampler, Session, SessionModel, Sessions
from tinker_utils.local.store.checkpoint import StoredCheckpoint
from tinker_utils.local.store.store import Store

MAX_ROWS = 64
"""Sequences drawn at the same time."""

MAX_PROMPT_TOKENS = 16_384
"""Prompt tokens that go through the model at the same time, padding included."""

QUIET_S, SETTLE_LIMIT_S = 0.01, 0.2
"""Drawing begins when no request has come for so long, or when it has waited so long in all."""

SNAPSHOTS_KEPT = 32
"""Unnamed weights a session: a loop that samples from each step's weights must not fill the disk."""

Draw = Callable[[Sequence[SampleQuery]], list[SampleOutput]]


class Gathering:
    """The waiting queries of one sampler, by their sequence numbers.

    They are added on the event loop and taken on the compute thread.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._waiting: dict[int, SampleQuery] = {}
        self._outcomes: dict[int, SampleOutput] = {}
        self._lock = threading.Lock()

    def add(self, number: int, query: SampleQuery) -> None:
        """Let a query wait for its turn, or for an earlier one's."""
        with self._lock:
            self._waiting[number] = query

    def take(self, number: int, draw: Draw) -> SampleOutput:
        """Return the outcome of a query: drawn now, with others that wait, unless an earlier one took it along."""
        if number not in self._outcomes:
            self._settle()
            queries = self._together(number)
            with self._lock:
                del self._waiting[number]
            # If this fails, the others are still there, and each has its own turn.
            self._outcomes.update(zip(queries, draw(list(queries.values())), strict=True))
            with self._lock:
                for each in queries:
                    self._waiting.pop(each, None)
        return self._outcomes.pop(number)

    def _settle(self) -> None:
        """Let the requests of one client's loop arrive: those that come too late cost a whole pass of their own."""
        end, count = time.monotonic() + SETTLE_LIMIT_S, 0
        while count < len(self._waiting) and time.monotonic() < end:
            count = len(self._waiting)
            time.sleep(QUIET_S)

    def _together(self, first: int) -> dict[int, SampleQuery]:
        """Return the query, and those of the waiting ones that fit in with it and can be served."""
        with self._lock:
            waiting = dict(self._waiting)
        query = waiting.pop(first)
        queries, rows, width = {first: query}, query.count, len(query.prompt)
        for number, other in waiting.items():
            width = max(width, len(other.prompt))
            if rows + other.count > MAX_ROWS or (len(queries) + 1) * width > MAX_PROMPT_TOKENS:
                break
            with contextlib.suppress(RequestError):  # its own turn will tell
                check_query(self._base, other)
                queries[number] = other
                rows += other.count
        return queries


class Samplers:
    """The samplers of all sessions. Like the rest of the server, it lives on the event loop; its jobs do not."""

    def __init__(self, engine: Engine, store: Store, served: Served, sessions: Sessions, lanes: Lanes) -> None:
        self._engine = engine
        self._store = store
        self._served = served
        self._sessions = sessions
        self._lanes = lanes
        self._gatherings: dict[str, Gathering] = {}
        self._snapshots: dict[str, collections.deque[Sampler]] = {}

    async def create(
        self, request: requests.CreateSamplingSessionRequest, offload: Callable[..., Any]
    ) -> dict[str, Any]:
        """Open a sampler on the base model or on saved weights; `offload` awaits a call beside the event loop."""
        session = self._sessions.open(request.session_id)
        sampler_id = _sampler_id(session, request.sampling_session_seq_id)
        if sampler_id not in session.samplers:
            if request.model_path is not None:
                weights = await offload(self._saved, Reference.from_path(request.model_path))
                sampler = Sampler(sampler_id, weights.spec.base_model, request.model_path, weights)
            elif request.base_model is not None:
                sampler = Sampler(sampler_id, self._served.check(request.base_model))
            else:
                raise RequestError("A sampling session needs either base_model or model_path.")
            self._open(session, sampler)
        return {"type": "create_sampling_session", "sampling_session_id": sampler_id}

    def snapshot(self, session: Session, model: SessionModel, number: int) -> Job:
        """Return a job that saves weights for a sampler, which opens at once and lasts as long as its session.

        This serves "inflight" samplers, too: they promise the weights at their creation, or newer ones.
        """
        sampler = Sampler(_sampler_id(session, number), "", fault="its weights were not saved")
        if sampler.sampler_id not in session.samplers:
            self._open(session, sampler)
            snapshots = self._snapshots.setdefault(session.session_id, collections.deque())
            snapshots.append(sampler)
            surplus = [snapshots.popleft()] if len(snapshots) > SNAPSHOTS_KEPT else []
        else:
            sampler, surplus = session.samplers[sampler.sampler_id], []
        directory = self._store.scratch / uuid.uuid4().hex

        def job() -> Result:
            for old in surplus:
                _discard(old, f"only the last {SNAPSHOTS_KEPT} unnamed weights of a session are kept")
            directory.mkdir(mode=0o700)
            self._engine.write(model.model_id, directory, optimizer=False)
            spec, previous = self._engine.spec(model.model_id), sampler.directory
            if previous is not None:
                shutil.rmtree(previous, ignore_errors=True)
            sampler.weights, sampler.directory = SavedWeights(directory / ADAPTER_FILE, spec), directory
            sampler.base_model, sampler.fault = spec.base_model, None
            return Result.json({"type": "save_weights_for_sampler", "sampling_session_id": sampler.sampler_id})

        return job

    def join(self, request: requests.JoinSamplingSessionRequest) -> dict[str, Any]:
        """Number a further client of a sampler."""
        sampler = self._sessions.sampler(request.sampling_session_id)
        sampler.clients += 1
        return {"type": "join_sampling_session", "client_counter": sampler.clients - 1}

    def sample(self, request: requests.SampleRequest) -> dict[str, Any]:
        """Draw sequences."""
        if request.sampling_session_id is None or request.seq_id is None:
            raise RequestError("asample needs sampling_session_id and seq_id.")
        sampler = self._sessions.sampler(request.sampling_session_id)
        query, sequence = read_query(request), request.seq_id

        gathering = self._gatherings.setdefault(sampler.sampler_id, Gathering(self._engine.base))

        def draw(queries: Sequence[SampleQuery]) -> list[SampleOutput]:
            if sampler.fault is not None:
                raise RequestError(f"Cannot sample from {sampler.sampler_id}: {sampler.fault}.")
            return self._engine.sample(sampler.weights, queries)

        if not self._lanes.knows(sampler.sampler_id, request.seq_id):
            gathering.add(request.seq_id, query)

        def job() -> Result:
            output = gathering.take(sequence, draw)
            return Result(encode_samples(output.sequences, output.prompt_logprobs))

        request_id = self._lanes.submit(sampler.sampler_id, request.seq_id, job)
        sequence_ids = [f"{request_id}:{index}" for index in range(query.count)]
        return {"request_id": request_id, "sample_sequence_ids": sequence_ids}

    def drop(self, sampler_id: str, reason: str) -> None:
        """Forget what a sampler was asked for; it can be asked anew."""
        self._lanes.close(sampler_id, reason)
        self._lanes.open(sampler_id, ordered=False)
        self._gatherings.pop(sampler_id, None)

    def close(self, session: Session, reason: str) -> None:
        """Close a session's samplers, and remove the weights that were theirs alone."""
        for sampler in list(session.samplers.values()):
            self._forget(session, sampler, reason, "its session has ended")
        self._snapshots.pop(session.session_id, None)

    def _open(self, session: Session, sampler: Sampler) -> None:
        session.samplers[sampler.sampler_id] = sampler
        self._lanes.open(sampler.sampler_id, ordered=False)
        if len(session.samplers) > MAX_SAMPLERS:
            unused = next(iter(session.samplers.values()))
            fault = f"{MAX_SAMPLERS} others were used more recently"
            self._forget(session, unused, f"The sampling session {unused.sampler_id} was closed: {fault}.", fault)

    def _forget(self, session: Session, sampler: Sampler, reason: str, fault: str) -> None:
        del session.samplers[sampler.sampler_id]
        self._lanes.close(sampler.sampler_id, reason)
        self._gatherings.pop(sampler.sampler_id, None)
        _discard(sampler, fault)

    def _saved(self, reference: Reference) -> SavedWeights:
        checkpoint = trained_here(self._store, self._served, reference)
        return SavedWeights(checkpoint.file(ADAPTER_FILE), checkpoint.info.lora)


def trained_here(store: Store, served: Served, reference: Reference) -> StoredCheckpoint:
    """Return the checkpoint; raise a `RequestError` if it cannot be loaded or was trained on another base model."""
    if reference.kind == "external_weights":
        raise RequestError(f"{reference.path} is for downloading only: name a checkpoint under weights/ instead.")
    checkpoint = store.read(reference)
    served.check(checkpoint.info.lora.base_model)
    return checkpoint


def _sampler_id(session: Session, number: int) -> str:
    return f"{session.session_id}:sample:{number}"


def _discard(sampler: Sampler, fault: str) -> None:
    sampler.fault = fault
    if sampler.directory is not None:
        shutil.rmtree(sampler.directory, ignore_errors=True)
