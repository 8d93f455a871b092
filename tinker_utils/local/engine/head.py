"""The head: log-probabilities of targets, and their gradient with respect to the hidden states.

Logits are the largest tensors by far (positions times vocabulary), so they never exist for a whole batch. A head
without an adapter is taken in blocks of the vocabulary: for hidden states h, with W the head's weights,

    logprob(t) = W_t h - log Σ_v exp(W_v h)        d logprob(t) / dh = W_t - Σ_v p_v W_v

both sums are added up block by block, so each block of logits is computed once, used for both, and overwritten while it
is still in the cache. The gradient of any loss is then its derivative by the log-probabilities, times that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]
"""From log-probabilities [n, K] to the loss's derivative by them [n, K]."""

BLOCK_POSITIONS = 1024
BLOCK_VOCABULARY = 2048
"""Logits computed at once by a head without an adapter: 8 MiB in float32."""

SLICE_ELEMENTS = 1 << 25
"""Logits computed at once by a head with an adapter: 128 MiB in float32."""


class Head(Protocol):
    """Computes float32 log-probabilities [n, K] of targets [n, K] from hidden states [n, H], and their gradient.

    Attributes:
        positions: the largest n of one call.
    """

    positions: int

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probabilities, without a gradient."""

    def differentiate(self, hidden: Tensor, targets: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and the loss's gradient by `hidden` [n, H]; add to an adapter's own gradients."""


class FrozenHead:
    """A linear head that is not trained: logits = h Wᵀ, W [V, H]."""

    def __init__(self, weight: Tensor) -> None:
        self.positions = BLOCK_POSITIONS
        self.weight = weight

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """See `Head`."""
        return self._target_logits(hidden, targets) - self._normalizer(hidden, with_mean=False)[0]

    def differentiate(self, hidden: Tensor, targets: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """See `Head`."""
        normalizer, mean = self._normalizer(hidden, with_mean=True)
        logprobs = self._target_logits(hidden, targets) - normalizer
        coefficients = slope(logprobs)
        gradient = mean.mul_(-coefficients.sum(1, keepdim=True))
        for coefficient, target in zip(coefficients.unbind(1), targets.unbind(1), strict=True):
            gradient.addcmul_(self.weight[target].float(), coefficient[:, None])
        return logprobs, gradient.to(hidden.dtype)

    def _target_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        columns = [torch.linalg.vecdot(hidden, self.weight[target]) for target in targets.unbind(1)]
        return torch.stack(columns, 1).float()

    def _normalizer(self, hidden: Tensor, with_mean: bool) -> tuple[Tensor, Tensor]:
        """Compute log Σ exp(logits) [n, 1], and the expected row of W under the model, [n, H], if asked for.

        Exponents are shifted by the largest logit of the first block. That is enough unless a later logit exceeds it by
        more than exp can hold; then the largest of all is looked up first.
        """
        buffer = torch.empty(len(hidden) * BLOCK_VOCABULARY, dtype=torch.float32, device=hidden.device)
        blocks = torch.split(self.weight, BLOCK_VOCABULARY)
        first = self._logits(hidden, blocks[0], buffer)
        shift = first.amax(1, keepdim=True)
        total, mean = self._sums(hidden, shift, with_mean, buffer, first)
        if not torch.isfinite(total).all():
            shift = torch.cat([self._logits(hidden, block, buffer).amax(1, keepdim=True) for block in blocks], 1)
            shift = shift.amax(1, keepdim=True)
            total, mean = self._sums(hidden, shift, with_mean, buffer)
        return total.log().add_(shift), mean.div_(total)

    def _sums(
        self, hidden: Tensor, shift: Tensor, with_mean: bool, buffer: Tensor, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute Σ exp(logit - shift) [n, 1] and Σ exp(logit - shift) W [n, H]; `first`: the first block's logits."""
        total = torch.zeros_like(shift)
        mean = torch.zeros(len(hidden), hidden.shape[1] if with_mean else 0, dtype=torch.float32, device=hidden.device)
        for block in torch.split(self.weight, BLOCK_VOCABULARY):
            logits, first = self._logits(hidden, block, buffer) if first is None else first, None
            exponentials = logits.sub_(shift).exp_()
            total.add_(exponentials.sum(1, keepdim=True))
            if not with_mean:
                continue
            if block.dtype == torch.float32:
                mean.addmm_(exponentials, block)
            else:
                mean.add_(exponentials.to(block.dtype) @ block)
        return total, mean

    def _logits(self, hidden: Tensor, block: Tensor, buffer: Tensor) -> Tensor:
        """Compute logits [n, block]; what the buffer held is lost."""
        if block.dtype != torch.float32:
            return (hidden @ block.t()).float()
        return torch.mm(hidden, block.t(), out=buffer[: len(hidden) * len(block)].view(len(hidden), len(block)))


class AdaptedHead:
    """The model's own head module, adapter included: its gradients go where autograd takes them."""

    def __init__(self, module: Any, vocabulary: int) -> None:
        self.positions = max(1, SLICE_ELEMENTS // vocabulary)
        self._module = module

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """See `Head`."""
        with torch.no_grad():
            return self._score(hidden, targets)

    def differentiate(self, hidden: Tensor, targets: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """See `Head`."""
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad():
            logprobs = self._score(leaf, targets)
        logprobs.backward(slope(logprobs.detach()))  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return logprobs.detach(), leaf.grad

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = cast(Tensor, self._module(hidden)).float()
        return logits.gather(1, targets) - logits.logsumexp(dim=1, keepdim=True)
