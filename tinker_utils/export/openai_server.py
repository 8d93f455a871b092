"""What an OpenAI-compatible server knows of tokens that it is given: their log-probabilities.

vLLM gives them as `prompt_logprobs`, by the tokens' ids; OpenAI's own protocol as `echo` with `logprobs`, which vLLM
and others have, too. The first says of which tokens they are, so it is asked for first.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.redaction import first_line
from tinker_utils.basics.strict_json import json_or_none, parse_json
from tinker_utils.basics.threads import within
from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.errors import ConfigError, ServiceError
from tinker_utils.plan.cautions import about_address
from tinker_utils.service.address import key_of, opener_for

_FORMS: tuple[dict[str, Any], ...] = ({"prompt_logprobs": 1}, {"echo": True, "logprobs": 1})
# One that loads an adapter when it is first asked for, or compiles, takes its time.
_ANSWER_SECONDS = 120.0
# Of an answer, at most: vLLM writes about 200 bytes for a token.
_BYTES, _BYTES_PER_TOKEN = 1 << 20, 1 << 10
T = TypeVar("T")


class OpenAIServer:
    """A server that speaks OpenAI's protocol; a warning is given where the way to it can be read.

    Args:
        url: its address, such as http://localhost:8000/v1; without a path, `/v1` is meant.
        key_env: the environment variable that holds its key, if it wants one. The hosted service is given its own.

    Raises:
        ConfigError: the one is no such address, or the other no such name.
        ServiceError: what the variable holds is no key.
    """

    def __init__(self, url: str, key_env: str) -> None:
        variable = str(replace(RULES["service_key_env"], key="key_env").check(key_env))
        try:
            address = str(RULES["service"].check(url))
        except ConfigError:
            address = ""
        if address.partition(":")[0] not in ("http", "https"):
            raise ConfigError("url: expected a server's address without a key in it, such as http://localhost:8000/v1.")
        self.url = address if address.count("/") > 2 else f"{address}/v1"
        for caution in about_address(TrainingConfig(service=self.url)):
            warnings.warn(caution, stacklevel=3)
        key, self._key_place = key_of(self.url, variable)
        self._headers = {"Content-Type": "application/json", "User-Agent": "tinker-utils"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._forms = _FORMS

    def only_adapter(self) -> str:
        """Return the name of the only adapter that the server lists, or of its only model.

        Raises:
            ServiceError: it cannot be reached, or lists none or several.
        """
        # vLLM says of an adapter which model it belongs to.
        listed = self._asked(
            "models", None, lambda found: [(str(each["id"]), each.get("parent")) for each in found["data"]]
        )
        names = [name for name, parent in listed if parent] or [name for name, _ in listed]
        if len(names) != 1:
            raise ServiceError(f"{self.url}: lists {', '.join(names) or 'no model'}; say which one it is: model='…'.")
        return names[0]

    def logprobs(self, model: str, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probability of each token but the first, in nats, float64, shape [n].

        Args:
            model: the name that a model or an adapter is served by.
            tokens: token ids t0…tn.

        Raises:
            ServiceError: the server cannot be reached, or does not give them.
        """
        refusals: dict[str, None] = {}
        for form in self._forms:
            # At temperature 0 a server leaves aside what a model's own configuration says of sampling.
            body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0, **form}
            try:
                found = self._asked("completions", body, lambda answer: prompt_logprobs(answer, tokens))
            except ServiceError as error:
                refusals[str(error)] = None
                continue
            self._forms = (form,)
            return found
        raise ServiceError(" ".join(refusals))

    def _asked(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the answer to a request."""
        url, data = f"{self.url}/{path}", json.dumps(body).encode() if body else None
        max_bytes = _BYTES + _BYTES_PER_TOKEN * len(body["prompt"] if body else ())
        try:
            request = urllib.request.Request(url, data, self._headers)
            answer, content = within(_ANSWER_SECONDS, lambda: _answered(request, max_bytes), "the answer")
            if answer.status != 200:
                raise self._refused(url, answer, content)
            return read(parse_json(content))
        except (OSError, http.client.HTTPException) as error:
            reason = first_line(str(getattr(error, "reason", None) or error))
            raise ServiceError(f"{url}: does not answer ({reason}); start the server, or correct the URL.") from error
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            reason = first_line(str(error)) if isinstance(error, ValueError) else "it lacks what was asked for"
            raise ServiceError(
                f"{url}: its answer cannot be used ({reason}); log-probabilities of a prompt are needed, from an "
                "OpenAI-compatible server such as vLLM."
            ) from error

    def _refused(self, url: str, answer: http.client.HTTPResponse, content: bytes) -> ServiceError:
        advice = {
            401: f"its key is looked for in {self._key_place}, and sent by https:// or within this machine alone",
            404: "correct the model's name, or the address, below which /completions must be",
        }.get(answer.status, "look at the server's log")
        if location := answer.headers.get("Location"):
            advice = f"it redirects to {location}, which is not followed"
        said = json_or_none(content)
        for name in ("error", "message", "detail"):
            said = said.get(name, said) if isinstance(said, dict) else said
        words = first_line(said if isinstance(said, str) else content.decode(errors="replace"))
        return ServiceError(f"{url}: answers {answer.status} ({words}); {advice}.")


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Follows no redirect, which would take the key along, and raises nothing for a refusal."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


def _answered(request: urllib.request.Request, max_bytes: int) -> tuple[http.client.HTTPResponse, bytes]:
    with opener_for(request.full_url, _AsItIs()).open(request, timeout=_ANSWER_SECONDS) as answer:
        content = bytearray()
        while piece := answer.read1(_BYTES):
            content += piece
            if len(content) > max_bytes:
                raise ValueError(f"it has more than {max_bytes:,} bytes")
    return answer, bytes(content)


def prompt_logprobs(answer: Any, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probabilities that a completion, read from JSON, gives for each token of its prompt but the first.

    Raises:
        ValueError: they are of another number of tokens, or of others, or not all there.
        TypeError, LookupError, AttributeError, OverflowError: there are none.
    """
    choice, sent = answer["choices"][0], len(tokens)
    if (named := choice.get("prompt_logprobs")) is not None:
        given = [each and each.get(str(token), {}).get("logprob") for each, token in zip(named, tokens, strict=False)]
        count = len(named)
    else:
        given = choice["logprobs"]["token_logprobs"]
        # With the token that was written behind the prompt, if there is one.
        count = len(given) - (len(given) == sent + 1)
    read = (answer.get("usage") or {}).get("prompt_tokens", sent)
    if count != sent or read != sent:
        raise ValueError(f"it was sent {sent:,} tokens, and is about {read if count == sent else count}")
    values = np.array(given[1:sent], np.float64)
    if not np.isfinite(values).all() or values.shape != (sent - 1,):
        raise ValueError("it lacks log-probabilities of tokens that it was sent")
    return values
