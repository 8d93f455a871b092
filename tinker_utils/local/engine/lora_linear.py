"""Frozen linear modules that read the same input, with their LoRA factors: forward, and backward by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from tinker_utils.local.engine.dropout import Masks

_Dx = TypeVar("_Dx", Tensor, None)


class Factors(NamedTuple):
    """One module's LoRA factors, fp32, and where their gradients are added up; None without a gradient."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    grad_a: Tensor | None
    grad_b: Tensor | None


@dataclass(frozen=True)
class Lora:
    """An adapter during one pass.

    Attributes:
        factors: by the module's name in the model.
        scale: alpha / r.
        masks: dropout, or None.
    """

    factors: Mapping[str, Factors]
    scale: float
    masks: Masks | None = None

    @property
    def gain(self) -> float:
        """Return what both factors' product is multiplied by: the scale, and what makes up for dropped elements."""
        return self.scale * (self.masks.gain if self.masks else 1.0)


@dataclass(frozen=True)
class SavedInputs:
    """Kept for the backward pass: the input [N, in], and for each adapted module its random bits and x̃ Aᵀ [N, r]."""

    x: Tensor
    bits: list[Tensor | None]
    u: list[Tensor]

    def rows(self, index: Tensor) -> Self:
        """Return the part of some rows."""
        bits = [None if each is None else each[index] for each in self.bits]
        return type(self)(self.x[index], bits, [each[index] for each in self.u])


class Projection:
    """y_j = x W_jᵀ + gain · (x ⊙ m_j) A_jᵀ B_jᵀ for modules j, with one product for all W_j.

    The modules' weights become views of the one matrix: nothing is stored twice.
    """

    def __init__(self, modules: Mapping[str, nn.Linear]) -> None:
        self.names = list(modules)
        self.sizes = [module.out_features for module in modules.values()]
        self.weight = (
            torch.cat([module.weight.data for module in modules.values()])
            if len(modules) > 1
            else (next(iter(modules.values())).weight.data)
        )
        for module, part in zip(modules.values(), torch.split(self.weight, self.sizes), strict=True):
            module.weight.data = part

    def forward(self, x: Tensor, lora: Lora, residual: Tensor | None = None) -> tuple[Tensor, SavedInputs]:
        """Return y [N, out], with `residual` [N, out] added if there is one; and what `backward` needs."""
        weight = self.weight.t()
        y = x @ weight if residual is None else torch.addmm(residual, x, weight)
        saved = SavedInputs(x, [], [])
        for factors, part in self._adapted(lora, y):
            bits, thinned = None, x
            if lora.masks is not None:
                bits = lora.masks.draw(*x.shape)
                thinned = lora.masks.mask(bits, x.dtype).mul_(x)
            u = thinned @ factors.a.to(x.dtype).t()
            part.addmm_(u, factors.b.to(x.dtype).t(), alpha=lora.gain)
            saved.bits.append(bits)
            saved.u.append(u)
        return y, saved

    def backward(self, dy: Tensor, saved: SavedInputs, lora: Lora) -> Tensor:
        """Return dx [N, in] for dy [N, out], and add the factors' gradients to what has accumulated."""
        return self._backward(dy, saved, lora, dy @ self.weight)

    def end_backward(self, dy: Tensor, saved: SavedInputs, lora: Lora) -> None:
        """Do as `backward` without dx, where nothing that x comes from is trained."""
        self._backward(dy, saved, lora, None)

    def _backward(self, dy: Tensor, saved: SavedInputs, lora: Lora, dx: _Dx) -> _Dx:
        x = saved.x
        for (factors, part), bits, u in zip(self._adapted(lora, dy), saved.bits, saved.u, strict=True):
            a, b = factors.a.to(x.dtype), factors.b.to(x.dtype)
            du = (part @ b).mul_(lora.gain)
            _accumulate(factors.grad_b, part, u, lora.gain)
            if bits is None or lora.masks is None:
                _accumulate(factors.grad_a, du, x)
                if dx is not None:
                    dx.addmm_(du, a)
            else:
                mask = lora.masks.mask(bits, x.dtype)
                if dx is not None:
                    dx.addcmul_(du @ a, mask)
                _accumulate(factors.grad_a, du, mask.mul_(x))
        return dx

    def _adapted(self, lora: Lora, y: Tensor) -> list[tuple[Factors, Tensor]]:
        parts = zip(self.names, torch.split(y, self.sizes, 1), strict=True)
        return [(lora.factors[name], part) for name, part in parts if name in lora.factors]


def _accumulate(gradient: Tensor | None, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """Add scale · leftᵀ right to the gradient."""
    if gradient is None:
        return
    if gradient.dtype == left.dtype:
        gradient.addmm_(left.t(), right, alpha=scale)
    else:
        gradient.add_(left.t() @ right, alpha=scale)
