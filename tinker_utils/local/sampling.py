"""Drawing sequences from the active model: one prefill of the prompt, then all samples side by side on a KV cache."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from .base import Base
from .faults import RequestError
from .protobuf import Array, SampledSequence
from .queries import SampleQuery

MAX_SAMPLED_TOKENS = 1 << 20
"""Bound on samples times tokens of one request."""


@dataclass(frozen=True)
class SampleOutput:
    """The drawn sequences, and float32 log-probabilities [prompt length] with NaN where none were asked for."""

    sequences: list[SampledSequence]
    prompt_logprobs: Array | None


@torch.inference_mode()
def sample(base: Base, query: SampleQuery) -> SampleOutput:
    """Draw sequences.

    The token that ends a sequence belongs to it. Log-probabilities are the model's own: those of temperature 1,
    without top_k and top_p.
    """
    steps = _steps(base, query)
    prompt = torch.tensor([query.prompt], device=base.device)
    cache = transformers.DynamicCache(config=base.model.config)
    hidden = base.hidden(prompt, cache)[0]
    scores = _score_prompt(base, hidden, prompt[0], query.prompt_logprobs) if query.prompt_logprobs else None
    cache.batch_repeat_interleave(query.count)
    logits = base.logits(hidden[-1:]).expand(query.count, -1)
    return SampleOutput(_draw(base, query, logits, cache, steps), scores)


def _draw(base: Base, query: SampleQuery, logits: Tensor, cache: Any, steps: int) -> list[SampledSequence]:
    endings = _Endings(base, query)
    # A generator of its own: neither training nor other requests draw from it. Finished sequences draw on, so that
    # what one sequence draws does not depend on when another ends.
    generator = np.random.default_rng(secrets.randbits(63) if query.seed is None else abs(query.seed))
    tokens = np.zeros((query.count, steps), np.int32)
    logprobs = np.zeros((query.count, steps), np.float32)
    lengths = np.full(query.count, steps)
    stopped = np.zeros(query.count, bool)
    for step in range(steps):
        chosen = _choose(logits, query, generator.random(query.count))
        tokens[:, step] = chosen.cpu().numpy()
        logprobs[:, step] = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].cpu().numpy()
        for row in np.flatnonzero(~stopped):
            if endings.reached(tokens[row, : step + 1]):
                stopped[row], lengths[row] = True, step + 1
        if stopped.all() or step + 1 == steps:
            break
        logits = base.logits(base.hidden(chosen[:, None], cache)[:, -1])
    return [
        SampledSequence(tokens[row, : lengths[row]], logprobs[row, : lengths[row]], bool(stopped[row]))
        for row in range(query.count)
    ]


def _choose(logits: Tensor, query: SampleQuery, uniform: Array) -> Tensor:
    """int64 [N]: one token a row of logits [N, V], by inverting the distribution function at `uniform` [N]."""
    if query.temperature == 0:
        return logits.argmax(-1)
    # In float64, because sums over a large vocabulary must still tell small probabilities apart.
    # The likeliest at 0 before the division, so that no temperature, however low, makes two infinities.
    logits = logits.double()
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / query.temperature).softmax(-1)
    points = torch.from_numpy(uniform).to(logits.device)[:, None]
    if query.top_k <= 0 and query.top_p >= 1:
        return _invert(probabilities, points)[:, 0]
    ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
    if query.top_k > 0:
        ordered[:, query.top_k :] = 0
    # Keep a token if those before it have not reached top_p yet: always the first one.
    ordered[(ordered.cumsum(-1) - ordered) >= query.top_p * ordered.sum(-1, keepdim=True)] = 0
    return order.gather(1, _invert(ordered, points))[:, 0]


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """int64 [N, 1]: where the running sum of weights [N, V] passes the fraction `points` [N, 1] of their total."""
    sums = weights.cumsum(-1)
    index: Tensor = torch.searchsorted(sums, points * sums[:, -1:], right=True)
    return index.clamp(max=weights.shape[-1] - 1)


class _Endings:
    """Whether a sequence has reached a stop token or a stop string."""

    def __init__(self, base: Base, query: SampleQuery) -> None:
        self._tokens = query.stop_tokens | (base.eos_tokens if query.stop_at_eos else frozenset())
        self._strings = query.stop_strings
        self._base = base

    def reached(self, tokens: Array) -> bool:
        if int(tokens[-1]) in self._tokens:
            return True
        if not self._strings:
            return False
        # A stop string may begin within a token, and its characters may span several: a token holds at least a byte,
        # a character at most four. Special tokens are spelled out, because they are what is usually stopped at.
        window = 4 * max(map(len, self._strings)) + 4
        text = self._base.tokenizer.decode(tokens[-window:].tolist(), skip_special_tokens=False)
        return any(string in text for string in self._strings)


def _score_prompt(base: Base, hidden: Tensor, prompt: Tensor, last: int) -> Array:
    """float32 [prompt length]: the log-probability of each of the last tokens after those before it, NaN elsewhere."""
    scores = np.full(len(prompt), np.nan, np.float32)
    first = max(1, len(prompt) - last)
    for start in range(first, len(prompt), 512):
        end = min(start + 512, len(prompt))
        logprobs = base.logits(hidden[start - 1 : end - 1]).log_softmax(-1)
        scores[start:end] = logprobs.gather(1, prompt[start:end, None])[:, 0].cpu().numpy()
    return scores


def _steps(base: Base, query: SampleQuery) -> int:
    """How many tokens to draw at most; a `RequestError` if the request cannot be served."""
    if not query.prompt:
        raise RequestError("The prompt has no tokens.")
    if min(query.prompt) < 0 or max(query.prompt) >= base.vocabulary:
        raise RequestError(f"The prompt holds a token outside this model's vocabulary of {base.vocabulary}.")
    room = base.max_length - len(query.prompt)
    if room < 0:
        raise RequestError(
            f"The prompt has {len(query.prompt)} tokens, but this model's context holds {base.max_length}."
        )
    steps = room if query.max_tokens is None else min(room, query.max_tokens)
    if steps * query.count > MAX_SAMPLED_TOKENS:
        raise RequestError(
            f"{query.count} samples of {steps} tokens are more than the {MAX_SAMPLED_TOKENS} a request may draw."
        )
    return steps
