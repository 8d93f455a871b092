"""Drawing sequences from the active model: one prefill of all prompts, then all samples side by side on a KV cache."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.queries import SampleQuery
from tinker_utils.local.protocol.tensors import Array, SampledSequence

MAX_SAMPLED_TOKENS = 1 << 20
"""Bound on samples times tokens of one request."""


@dataclass(frozen=True)
class SampleOutput:
    """The drawn sequences, and float32 log-probabilities [prompt length] with NaN where none were asked for."""

    sequences: list[SampledSequence]
    prompt_logprobs: Array | None


@torch.inference_mode()
def sample(base: Base, queries: Sequence[SampleQuery]) -> list[SampleOutput]:
    """Draw sequences for each query, all of them at the same time.

    The token that ends a sequence belongs to it. Log-probabilities are the model's own: those of temperature 1,
    without top_k and top_p.

    Raises:
        RequestError: one of the queries cannot be served; see `check_query`.
    """
    steps = [check_query(base, query) for query in queries]
    width = max(len(query.prompt) for query in queries)
    # Padded on the left, so that all samples begin in the same column of the cache.
    tokens = np.zeros((len(queries), width), np.int64)
    real = np.zeros_like(tokens, bool)
    for index, query in enumerate(queries):
        tokens[index, width - len(query.prompt) :] = query.prompt
        real[index, width - len(query.prompt) :] = True
    prompts, places = torch.from_numpy(tokens).to(base.device), _Places(torch.from_numpy(real).to(base.device))
    cache = transformers.DynamicCache(config=base.model.config)
    base.share(prompts.numel() * base.part_weights)
    hidden = base.hidden(prompts, cache, *places.now())
    scores = [
        _score_prompt(base, hidden[index, width - len(query.prompt) :], prompts[index][real[index]], query)
        for index, query in enumerate(queries)
    ]
    rows = np.repeat(np.arange(len(queries)), [query.count for query in queries])
    source: Any = torch.from_numpy(rows).to(base.device)
    cache.reorder_cache(source)
    places.keep(source)
    base.share(len(rows) * base.part_weights)
    sequences = _draw(base, queries, rows, base.logits(hidden[:, -1])[source], cache, places, np.array(steps))
    return [
        SampleOutput([sequences[row] for row in np.flatnonzero(rows == number)], score)
        for number, score in enumerate(scores)
    ]


class _Places:
    """The columns of the cache that each row looks at, and the position that each row stands at.

    Without padding there is nothing to say: transformers' own default is the faster one.
    """

    def __init__(self, real: Tensor) -> None:
        self._padded = not bool(real.all())
        self._real = real
        self._width = real.shape[1]

    def now(self) -> tuple[Tensor | None, Tensor | None]:
        """Return attention mask [rows, columns], and positions of the tokens that are to come next, [rows, new]."""
        if not self._padded:
            return None, None
        return self._real, (self._real.cumsum(1) - 1).clamp(min=0)[:, -self._width :]

    def step(self) -> None:
        """Add one more column, real in every row."""
        self._width = 1
        if self._padded:
            self._real = torch.cat((self._real, self._real.new_ones(len(self._real), 1)), 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order."""
        self._real = self._real[rows]


def _draw(
    base: Base,
    queries: Sequence[SampleQuery],
    rows: Array,
    logits: Tensor,
    cache: Any,
    places: _Places,
    steps: Array,
) -> list[SampledSequence]:
    """Draw one sequence for each of `rows`, which are indices of queries, from their first logits [rows, V]."""
    # A generator for each query: neither training nor other requests draw from it. Finished sequences draw on, so that
    # what one sequence draws does not depend on when another ends.
    generators = [np.random.default_rng(_seed(query)) for query in queries]
    endings = [_Endings(base, query) for query in queries]
    tokens = np.zeros((len(rows), steps.max()), np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    lengths, stopped = steps[rows], np.zeros(len(rows), bool)
    running = np.arange(len(rows))
    for step in range(steps.max()):
        uniform = np.concatenate(
            [generator.random(query.count) for generator, query in zip(generators, queries, strict=True)]
        )
        chosen = _choose_each(logits, [queries[query] for query in rows[running]], uniform[running])
        tokens[running, step] = chosen.cpu().numpy()
        logprobs[running, step] = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].cpu().numpy()
        for row in running[(step < lengths[running]) & ~stopped[running]]:
            if endings[rows[row]].reached(tokens[row, : step + 1]):
                stopped[row], lengths[row] = True, step + 1
        going = step + 1 < lengths[running]
        if not going.any():
            break
        places.step()
        if 2 * going.sum() <= len(running):
            kept: Any = torch.from_numpy(np.flatnonzero(going)).to(base.device)
            running, chosen = running[going], chosen[kept]
            cache.reorder_cache(kept)
            places.keep(kept)
        logits = base.logits(base.hidden(chosen[:, None], cache, *places.now())[:, -1])
    return [
        SampledSequence(tokens[row, : lengths[row]], logprobs[row, : lengths[row]], bool(stopped[row]))
        for row in range(len(rows))
    ]


def _seed(query: SampleQuery) -> int:
    return secrets.randbits(63) if query.seed is None else abs(query.seed)


def _choose_each(logits: Tensor, queries: Sequence[SampleQuery], uniform: Array) -> Tensor:
    """Return int64 [rows]: one token a row of logits [rows, V], as that row's query wants it."""
    ways = [(query.temperature, query.top_k, query.top_p) for query in queries]
    if len(set(ways)) == 1:
        return _choose(logits, queries[0], uniform)
    chosen = torch.zeros(len(queries), dtype=torch.int64, device=logits.device)
    for way in set(ways):
        rows = np.flatnonzero([each == way for each in ways])
        index = torch.from_numpy(rows).to(logits.device)
        chosen[index] = _choose(logits[index], queries[rows[0]], uniform[rows])
    return chosen


def _choose(logits: Tensor, query: SampleQuery, uniform: Array) -> Tensor:
    """Return int64 [N]: one token a row of logits [N, V], by inverting the distribution function at `uniform` [N]."""
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
    """Return int64 [N, 1]: where the running sum of weights [N, V] passes the fraction `points` [N, 1] of their sum."""
    sums = weights.cumsum(-1)
    index: Tensor = torch.searchsorted(sums, points * sums[:, -1:], right=True)
    return index.clamp(max=weights.shape[-1] - 1)


class _Endings:
    """Tells whether a sequence has reached a stop token or a stop string."""

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


def _score_prompt(base: Base, hidden: Tensor, prompt: Tensor, query: SampleQuery) -> Array | None:
    """Return float32 [prompt length]: the log-probability of each last token after those before it, NaN elsewhere."""
    if not query.prompt_logprobs:
        return None
    scores = np.full(len(prompt), np.nan, np.float32)
    first = max(1, len(prompt) - query.prompt_logprobs)
    for start in range(first, len(prompt), 512):
        end = min(start + 512, len(prompt))
        logprobs = base.logits(hidden[start - 1 : end - 1]).log_softmax(-1)
        scores[start:end] = logprobs.gather(1, prompt[start:end, None])[:, 0].cpu().numpy()
    return scores


def check_query(base: Base, query: SampleQuery) -> int:
    """Return how many tokens to draw at most; raise a `RequestError` if the request cannot be served."""
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
