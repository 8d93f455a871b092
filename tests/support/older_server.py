"""A server written for an older SDK: a relay that refuses what SkyRL 0.4.0 and TuFT 0.2.2 refuse, as they do."""

from __future__ import annotations

import json
from typing import Any

from support.faulty_service import FaultyService
from support.relay import Message, reply

from tinker_utils.local.protocol.tensors import parse_forward_backward

SKYRL = frozenset({"load by session", "sequence ids", "overwriting", "external weights", "order", "metric names"})
TUFT = frozenset({"load by session", "optimizer_config", "kind", "external weights"})


def detail(said: object) -> bytes:
    return json.dumps({"detail": said}).encode()


def extra(field: str, value: object) -> bytes:
    """As pydantic refuses a field that it does not know."""
    message = "Extra inputs are not permitted"
    return detail([{"type": "extra_forbidden", "loc": ["body", field], "msg": message, "input": value}])


class OlderServer(FaultyService):
    """Passes on what an older server has, and refuses the rest, before any fault happens.

    Args:
        target: the service behind it.
        lacks: what it refuses.
        archive: where it says that the archive of an adapter is.
    """

    def __init__(self, target: str, lacks: frozenset[str], archive: str = "file:///checkpoints/adapter") -> None:
        super().__init__(target)
        self.lacks, self.archive = lacks, archive
        self.refused: list[str] = []
        self.sent_too_early: list[str] = []
        self._names: set[tuple[str, str]] = set()
        self._unanswered: dict[str, str] = {}

    async def answer(self, request: Message) -> Message | None:
        """The reply of an older server."""
        refusal = self._refusal(request)
        if refusal is not None:
            self.refused.append(request.endpoint)
            return refusal
        behind = request.endpoint in ("optim_step", "save_weights") and "order" in self.lacks
        if behind and _json(request)["model_id"] in self._unanswered.values():
            self.sent_too_early.append(request.endpoint)
        answered = await super().answer(request)
        return answered and self._aged(request, answered)

    def _refusal(self, request: Message) -> Message | None:
        endpoint, body = request.endpoint, _json(request)
        if endpoint == "create_model" and "optimizer_config" in body and "optimizer_config" in self.lacks:
            return reply(422, extra("optimizer_config", body["optimizer_config"]))
        if endpoint == "save_weights_for_sampler" and "kind" in body and "kind" in self.lacks:
            return reply(422, extra("kind", body["kind"]))
        if endpoint == "load_weights" and not body.get("model_id") and "load by session" in self.lacks:
            return reply(422, detail([{"type": "missing", "loc": ["body", "model_id"], "msg": "Field required"}]))
        if endpoint == "save_weights" and "overwriting" in self.lacks:
            if (key := (body["model_id"], body["path"])) in self._names:
                return reply(409, detail(f"Checkpoint '{key[1]}' already exists for model '{key[0]}'"))
            self._names.add(key)
        if "external weights" in self.lacks:
            if endpoint == "save_weights_external":
                return reply(405, detail("Method Not Allowed"))
            if endpoint.endswith("/archive"):
                return reply(302, b"", location=self.archive)
        return None

    def _aged(self, request: Message, answered: Message) -> Message:
        endpoint, body = request.endpoint, _json(answered)
        if endpoint == "asample" and "sequence ids" in self.lacks:
            body.pop("sample_sequence_ids", None)
        if endpoint == "forward_backward" and answered.status == 200 and "order" in self.lacks:
            body["future_id"] = body["request_id"]
            self._unanswered[body["request_id"]] = parse_forward_backward(request.body).model_id
        if endpoint == "retrieve_future" and answered.status in (200, 400):
            self._unanswered.pop(_json(request)["request_id"], None)
        if isinstance(body.get("metrics"), dict) and "metric names" in self.lacks:
            body["metrics"] = {f"skyrl.ai/{name}": value for name, value in body["metrics"].items()}
        return answered.with_body(json.dumps(body).encode()) if body else answered


def _json(message: Message) -> dict[str, Any]:
    try:
        body = json.loads(message.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
