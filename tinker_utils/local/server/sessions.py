"""Sessions that clients have open, with their models and samplers. They live in memory, on the event loop."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tinker_utils.local.engine.engine import SavedWeights
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec

HEARTBEAT_LIMIT_S = 40
"""What a client has queued is dropped after so long without a request: the SDK sends a heartbeat every ten seconds."""

IDLE_LIMIT_S = 1800
"""A session whose client has sent nothing for so long is ended."""

MAX_SESSIONS = 1000
"""Sessions that are remembered, the ended ones included."""

MAX_MODELS = 256
"""Models that one session may have: each holds an adapter and its optimizer in memory."""

MAX_SAMPLERS = 1000
"""Samplers that one session may have. A loop may open one at each step, so the one unused for longest makes room."""


@dataclass
class SessionModel:
    """A model that a client trains; `spec` is None until the engine has made it.

    `weighted_only`: see `protocol/logprobs.py`.
    """

    model_id: str
    session_id: str
    user_metadata: dict[str, str]
    weighted_only: bool
    spec: LoraSpec | None = None
    last_request: float = field(default_factory=time.time)


@dataclass
class Sampler:
    """Weights that a client samples from.

    Attributes:
        sampler_id: its id, which begins with its session's.
        base_model: the base model's name.
        model_path: the checkpoint it was opened on, if any.
        weights: None stands for the base model itself.
        directory: where its weights are, if they are nobody else's.
        fault: why nothing can be drawn from it now; None if something can.
        clients: how many clients share it.
    """

    sampler_id: str
    base_model: str
    model_path: str | None = None
    weights: SavedWeights | None = None
    directory: Path | None = None
    fault: str | None = None
    clients: int = 1


@dataclass
class Session:
    """One client's session; the sampler unused for longest comes first.

    `silent_s` counts the seconds, as the server saw them pass, since its client was heard last.
    """

    session_id: str
    user_metadata: dict[str, str]
    display_name: str | None
    models: dict[str, SessionModel] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)
    silent_s: int = 0
    finished: bool = False


class Sessions:
    """Every session by its id. Ids are random, so those of a server that ran before cannot be met again."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.ending: str | None = None
        """Why no new session is opened any more."""

    def create(self, user_metadata: dict[str, str], display_name: str | None) -> Session:
        """Open a new session; raise a `RequestError` if there are too many (429) or the server is ending (503)."""
        if self.ending is not None:
            raise RequestError(self.ending, 503)
        self._make_room()
        session = Session(str(uuid.uuid4()), user_metadata, display_name)
        self._sessions[session.session_id] = session
        return session

    def _make_room(self) -> None:
        """Forget the oldest of the sessions that have ended: they are kept only to say so."""
        while len(self._sessions) >= MAX_SESSIONS:
            ended = next((session for session in self._sessions.values() if session.finished), None)
            if ended is None:
                raise RequestError(f"{MAX_SESSIONS} sessions are open: close one of them first.", 429)
            del self._sessions[ended.session_id]

    def known(self, session_id: str) -> Session:
        """Return the session, ended or not; raise a `RequestError` (404) if there is none."""
        session = self._sessions.get(session_id)
        if session is None:
            raise RequestError(
                f"The session {session_id[:80]} is unknown to this service: it was restarted, or the session is of "
                "another one.",
                404,
            )
        return session

    def open(self, session_id: str) -> Session:
        """Return the session; raise a `RequestError` if there is none (404) or it has ended (410)."""
        session = self.known(session_id)
        if session.finished:
            raise RequestError(f"The session {session_id} has ended.", 410)
        session.silent_s = 0
        return session

    def of(self, lane_id: str) -> Session | None:
        """Return the session of a model, a sampler or a request, whose ids begin with its own, or None."""
        return self._sessions.get(lane_id.partition(":")[0])

    def model(self, model_id: str) -> SessionModel:
        """Return the model; raise a `RequestError` (404) if there is none."""
        session_id, _, _ = model_id.partition(":train:")
        model = self.open(session_id).models.get(model_id)
        if model is None:
            raise RequestError(
                f"The model {model_id[:120]} does not exist in its session: it was never made, or it was dropped after "
                f"{HEARTBEAT_LIMIT_S} seconds without a heartbeat.",
                404,
            )
        model.last_request = time.time()
        return model

    def sampler(self, sampler_id: str) -> Sampler:
        """Return the sampler, now the last used of its session; raise a `RequestError` (404) if there is none."""
        session_id, _, _ = sampler_id.partition(":sample:")
        samplers = self.open(session_id).samplers
        sampler = samplers.pop(sampler_id, None)
        if sampler is None:
            raise RequestError(
                f"The sampling session {sampler_id[:120]} does not exist in its session: it was never opened, or "
                f"{MAX_SAMPLERS} others were used more recently.",
                404,
            )
        samplers[sampler_id] = sampler
        return sampler

    def all(self) -> list[Session]:
        """Return every session, the newest last."""
        return list(self._sessions.values())
