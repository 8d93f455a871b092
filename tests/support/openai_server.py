"""A small OpenAI-compatible server on plain transformers and peft: it serves adapters as vLLM does, and lies if told.

It answers `GET /v1/models` and `POST /v1/completions`, the latter with the fields of vLLM's answers that concern the
log-probabilities of a prompt.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import peft
import torch
import transformers
from support.local_service import MODEL_DIRECTORY

BASE = "base"


class OpenAIServer(ThreadingHTTPServer):
    """Serves the packaged model and adapters of it; a context manager.

    Attributes:
        serves: by the name that is asked for, whose log-probabilities are given: an adapter's name, or `base`.
        bend: what becomes of a completion on its way out: a status, and the content to send.
        fields: what a request may ask for, besides what every server knows; anything else is refused.
        key: what it wants, if it wants a key.
        seen: of each request, its path and the key that came with it.
    """

    def __init__(self, adapters: dict[str, Path], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY)
        (first, path), *others = adapters.items()
        self._model: Any = peft.PeftModel.from_pretrained(model, str(path), adapter_name=first)
        for name, path in others:
            self._model.load_adapter(str(path), adapter_name=name)
        self._model.to(dtype).eval()
        self._one = threading.Lock()
        self.names = list(adapters)
        self.reset()

    def reset(self) -> None:
        self.serves = {name: name for name in (BASE, *self.names)}
        self.bend: Callable[[dict[str, Any]], tuple[int, Any]] = lambda answer: (200, answer)
        self.fields = {"prompt_logprobs", "echo", "logprobs"}
        self.key: str | None = None
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []

    def models(self) -> dict[str, Any]:
        adapters = [{"id": name, "parent": BASE} for name in self.serves if name != BASE]
        return {"object": "list", "data": [{"id": BASE, "parent": None}, *adapters]}

    def complete(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Answer a request for a completion: a status, and the content."""
        if request["model"] not in self.serves:
            said = f"The model `{request['model']}` does not exist."
            return 404, {"error": {"message": said, "type": "NotFoundError", "code": 404}}
        if unknown := sorted(set(request) - {"model", "prompt", "max_tokens", "temperature"} - self.fields):
            return 400, {"object": "error", "message": f"Unknown field {unknown[0]}."}
        tokens = request["prompt"]
        scored = self._log_softmax(self.serves[request["model"]], tokens)
        given = [None, *(float(row[token]) for row, token in zip(scored, tokens[1:], strict=False))]
        choice: dict[str, Any] = {"index": 0, "text": "…", "logprobs": None, "finish_reason": "length"}
        if request.get("prompt_logprobs") is not None:
            best = [None, *(int(row.argmax()) for row in scored[:-1])]
            top = [None, *(float(row.max()) for row in scored[:-1])]
            choice["prompt_logprobs"] = [
                None if own is None else {str(token): {"logprob": own}} | ({str(b): {"logprob": t, "rank": 1}})
                for token, own, b, t in zip(tokens, given, best, top, strict=True)
            ]
        if request.get("echo"):
            choice["logprobs"] = {"token_logprobs": [*given, float(scored[-1].max())]}
        return self.bend({"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": 1}})

    def _log_softmax(self, which: str, tokens: list[int]) -> torch.Tensor:
        with self._one, torch.inference_mode():
            if which == BASE:
                with self._model.disable_adapter():
                    logits = self._model(torch.tensor([tokens])).logits[0]
            else:
                self._model.set_adapter(which)
                logits = self._model(torch.tensor([tokens])).logits[0]
        return logits.float().log_softmax(-1)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, request: dict[str, Any] | None) -> None:
        server, key = self.server, self.headers.get("Authorization")
        server.seen.append((self.path, key))
        status, content = 404, {"detail": "Not Found"}
        if server.key is not None and key != f"Bearer {server.key}":
            status, content = 401, {"error": "Unauthorized"}
        elif self.path == "/v1/models" and request is None:
            status, content = 200, server.models()
        elif self.path == "/v1/completions" and request is not None:
            status, content = server.complete(request)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass
