"""The loss functions of the protocol: each a sum, over all positions, of a term of that position's log-probability.

Formulas are those of Tinker's documentation; `r = exp(logprob - sampling logprob)`, clipped to [1 - 0.2, 1 + 0.2]
unless `clip_low_threshold` and `clip_high_threshold` say otherwise:

    cross_entropy         -logprob · weight
    importance_sampling   -r · advantage
    ppo                   -min(r · advantage, clip(r) · advantage)
    cispo                 -clip(r), without gradient · logprob · advantage
    dro                   -(logprob · advantage - beta/2 · (logprob - sampling logprob)²), beta = 0.05
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.tensors import Array, Datum, LossRequest

TARGETS = "target_tokens"

Terms = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, float]], Tensor]


@dataclass(frozen=True)
class Loss:
    """One loss function.

    Attributes:
        inputs: names of the float32 inputs it takes beside the targets, one value a target.
        terms: (logprobs, inputs, options) → the summands; the loss is their sum.
        options: what `loss_fn_config` may set, with the defaults.
        scale: the input that multiplies the whole term, so that no gradient flows where it is 0; None if none does.
        sparse: whether log-probabilities are wanted only where `scale` is not 0.
    """

    inputs: tuple[str, ...]
    terms: Terms
    scale: str | None
    options: Mapping[str, float] = field(default_factory=dict)
    sparse: bool = False


def _cross_entropy(logprobs: Tensor, inputs: Mapping[str, Tensor], options: Mapping[str, float]) -> Tensor:
    return -logprobs * inputs["weights"]


def _importance_sampling(logprobs: Tensor, inputs: Mapping[str, Tensor], options: Mapping[str, float]) -> Tensor:
    return -_ratio(logprobs, inputs) * inputs["advantages"]


def _ppo(logprobs: Tensor, inputs: Mapping[str, Tensor], options: Mapping[str, float]) -> Tensor:
    ratio = _ratio(logprobs, inputs)
    return -torch.minimum(ratio * inputs["advantages"], _clip(ratio, options) * inputs["advantages"])


def _cispo(logprobs: Tensor, inputs: Mapping[str, Tensor], options: Mapping[str, float]) -> Tensor:
    return -_clip(_ratio(logprobs, inputs), options).detach() * logprobs * inputs["advantages"]


def _dro(logprobs: Tensor, inputs: Mapping[str, Tensor], options: Mapping[str, float]) -> Tensor:
    penalty = 0.5 * options["beta"] * (logprobs - inputs["logprobs"]) ** 2
    return penalty - logprobs * inputs["advantages"]


def _ratio(logprobs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.exp(logprobs - inputs["logprobs"])


def _clip(ratio: Tensor, options: Mapping[str, float]) -> Tensor:
    return ratio.clamp(options["clip_low_threshold"], options["clip_high_threshold"])


_POLICY = ("logprobs", "advantages")
_CLIPPING = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(("weights",), _cross_entropy, "weights"),
    "importance_sampling": Loss(_POLICY, _importance_sampling, "advantages"),
    "ppo": Loss(_POLICY, _ppo, "advantages", _CLIPPING),
    "cispo": Loss(_POLICY, _cispo, "advantages", _CLIPPING),
    "dro": Loss(_POLICY, _dro, None, {"beta": 0.05}),
}


def choose(request: LossRequest, sparse: bool) -> tuple[Loss, dict[str, float]]:
    """Return a request's loss and its options; raise a `RequestError` if there is no such loss or option.

    Args:
        request: names them.
        sparse: see `Loss`.
    """
    loss = LOSSES.get(request.loss)
    if loss is None:
        raise RequestError(f"The loss {request.loss[:80]!r} is not served here: use one of {', '.join(LOSSES)}.")
    options = dict(loss.options)
    for key, value in request.config.items():
        if key not in options:
            known = ", ".join(options) or "no options"
            raise RequestError(f"loss_fn_config[{key[:80]!r}] is unknown: {request.loss} takes {known}.")
        if isinstance(value, str) or not math.isfinite(value):
            raise RequestError(f"loss_fn_config[{key!r}] must be a finite number, not {value!r}.")
        options[key] = value
    return replace(loss, sparse=sparse), options


def check_loss(request: LossRequest, loss: Loss, vocabulary: int, max_length: int) -> None:
    """Raise a `RequestError` that names the row and field at fault, if the model cannot compute this loss."""
    for index, datum in enumerate(request.data):
        where = f"data[{index}]"
        if len(datum.tokens) > max_length:
            raise RequestError(f"{where} has {len(datum.tokens)} tokens, but this model's context holds {max_length}.")
        _check_tokens(datum.tokens, vocabulary, f"{where}.model_input")
        _check_inputs(datum, loss, vocabulary, where, request.loss)


def _check_inputs(datum: Datum, loss: Loss, vocabulary: int, where: str, name: str) -> None:
    expected = {TARGETS, *loss.inputs}
    if set(datum.inputs) != expected:
        raise RequestError(
            f"{where}.loss_fn_inputs must be {', '.join(sorted(expected))} for {name}, "
            f"but they are {', '.join(sorted(datum.inputs))[:200] or 'missing'}."
        )
    targets = datum.inputs[TARGETS]
    if targets.dtype != np.int64:
        raise RequestError(f"{where}.loss_fn_inputs['{TARGETS}'] must be of dtype int64.")
    _check_tokens(targets, vocabulary, f"{where}.loss_fn_inputs['{TARGETS}']")
    for key in loss.inputs:
        values = datum.inputs[key]
        if values.dtype != np.float32 or values.shape != targets.shape:
            raise RequestError(
                f"{where}.loss_fn_inputs[{key!r}] must be float32 of the targets' shape {list(targets.shape)}, "
                f"but it is {values.dtype} of {list(values.shape)}."
            )
        if not np.isfinite(values).all():
            raise RequestError(f"{where}.loss_fn_inputs[{key!r}] holds NaN or infinity.")


def _check_tokens(tokens: Array, vocabulary: int, where: str) -> None:
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise RequestError(
            f"{where} holds token {tokens.min() if tokens.min() < 0 else tokens.max()}, "
            f"but this model's vocabulary goes from 0 to {vocabulary - 1}."
        )
