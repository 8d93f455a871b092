"""Requests to draw from a model."""

from __future__ import annotations

from dataclasses import dataclass

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.requests import SampleRequest


@dataclass(frozen=True)
class SampleQuery:
    """One request to draw.

    Attributes:
        prompt: token ids, at least one.
        count: sequences to draw.
        max_tokens: None draws until the model's context is full, which ends a sequence in any case.
        stop_tokens: token ids that end a sequence.
        stop_strings: texts that end a sequence, too.
        stop_at_eos: whether the model's own end-of-text tokens do so as well.
        temperature: 0 draws the likeliest token.
        top_k: draw from the likeliest `top_k` tokens only; -1 from all.
        top_p: draw from the likeliest tokens that together reach this probability.
        seed: makes the draws repeatable; None draws a seed.
        prompt_logprobs: how many of the prompt's last tokens to score; 0 for none.
    """

    prompt: tuple[int, ...]
    count: int = 1
    max_tokens: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    stop_at_eos: bool = True
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    prompt_logprobs: int = 0


def read_query(request: SampleRequest) -> SampleQuery:
    """Return the query in a request; raise a `RequestError` that names what this service cannot do."""
    _refuse_unserved(request)
    params = request.sampling_params
    prompt = tuple(token for chunk in request.prompt.chunks for token in chunk.tokens)
    stop = params.stop
    strings = (stop,) if isinstance(stop, str) else tuple(text for text in stop or () if isinstance(text, str))
    if "" in strings:
        raise RequestError("A stop string must not be empty.")
    tokens = frozenset(token for token in stop or () if isinstance(token, int))
    wanted = len(prompt) if request.prompt_logprobs_last_n is None else request.prompt_logprobs_last_n
    return SampleQuery(
        prompt=prompt,
        count=request.num_samples,
        max_tokens=params.max_tokens,
        stop_tokens=tokens,
        stop_strings=strings,
        stop_at_eos=stop != [],
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        prompt_logprobs=wanted if request.prompt_logprobs else 0,
    )


def _refuse_unserved(request: SampleRequest) -> None:
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "target_prompt_logprobs", "prompt_alt_tokens_k"):
        if getattr(request, name):
            raise RequestError(f"{name} is not served here: leave it out.")
    if request.record_stability_info:
        raise RequestError("record_stability_info is not supported, and neither is the loss that needs it.")
    for chunk in request.prompt.chunks:
        if chunk.type != "encoded_text":
            raise RequestError(f"The prompt has a chunk of type {chunk.type[:40]!r}, but this service reads text only.")
