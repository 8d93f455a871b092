"""One LoRA adapter's weights, gradients and optimizer, kept in flat buffers.

peft builds the modules; their weights then become views of one buffer, and their gradients of another. So AdamW, the
gradient's norm and its clearing are a few operations on one tensor, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tinker_utils.local.engine.lora_linear import Factors
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.requests import AdamParams
from tinker_utils.local.store.checkpoint import ModelProgress, damaged

_ALIGNMENT = 16
"""Elements: each view begins on a cache line of 64 bytes, as a tensor of its own would."""


# Names in PEFT's files are the prefix, a module's name in the model, and one of these.
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Adapter:
    """The state of one model.

    Args:
        name: what peft calls it.
        spec: what it was built from.
        parameters: its weights, by their names in PEFT's files.
        dropouts: its dropout modules.
    """

    def __init__(
        self, name: str, spec: LoraSpec, parameters: Mapping[str, nn.Parameter], dropouts: Sequence[nn.Module]
    ) -> None:
        self.name = name
        self.spec = spec
        self.progress = ModelProgress()
        self.gradient_fault: str | None = None
        self.has_gradient = False
        self._parameters = dict(sorted(parameters.items()))
        self._dropouts = dropouts
        self._weights = self._flatten()
        self._gradient: Tensor | None = None
        self._optimizer: torch.optim.AdamW | None = None

    @property
    def size(self) -> int:
        """Return how many weights it has, and what lies between them."""
        return self._weights.numel()

    def train(self, mode: bool) -> None:
        """Switch this adapter's dropout; the base model itself is never in training mode."""
        for dropout in self._dropouts:
            dropout.train(mode)

    def factors(self) -> dict[str, Factors]:
        """Return the factors and their gradients' buffers, by the names of the modules that they adapt."""
        found: dict[str, Factors] = {}
        for name, a in self._parameters.items():
            if name.endswith(_A):
                b = self._parameters[name.removesuffix(_A) + _B]
                path = name.removeprefix(_PREFIX).removesuffix(_A)
                found[path] = Factors(a.detach(), b.detach(), a.grad, b.grad)
        return found

    def prepare_gradient(self) -> None:
        """Make the parameters' gradients views of one buffer, into which backward passes add."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._weights)
            for parameter, view in zip(self._parameters.values(), self._views(self._gradient), strict=True):
                parameter.grad = view

    def clear_gradient(self) -> None:
        """Forget what was accumulated."""
        if self._gradient is not None:
            self._gradient.zero_()
        self.has_gradient = False
        self.gradient_fault = None

    def step(self, params: AdamParams) -> float:
        """Take a step of AdamW with the accumulated gradient, clear it, and return its norm before clipping."""
        self.prepare_gradient()
        assert self._gradient is not None
        norm = torch.linalg.vector_norm(self._gradient)
        if params.grad_clip_norm > 0:
            # As torch.nn.utils.clip_grad_norm_ does it.
            self._gradient.mul_((params.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0))
        optimizer = self._optimizer = self._optimizer or self._new_optimizer()
        optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self._weights.grad = self._gradient
        optimizer.step()
        self.clear_gradient()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights on the CPU, by their names in PEFT's files."""
        return self._copies(self._weights.detach())

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return Adam's moments and step count on the CPU, fp32; empty before the first step."""
        if self._optimizer is None:
            return {}
        state = self._optimizer.state[self._weights]
        moments = {
            f"{moment}.{name}": copy
            for moment in ("exp_avg", "exp_avg_sq")
            for name, copy in self._copies(state[moment]).items()
        }
        return {**moments, "step": state["step"].detach().to("cpu", torch.float32, copy=True)}

    def load_weights(self, file: Path) -> None:
        """Take the weights from a file that `weights` was saved to, and forget gradient and optimizer."""
        self._fill(self._weights.detach(), file, _read(file), "")
        self.clear_gradient()
        self._optimizer = None

    def load_optimizer(self, file: Path) -> None:
        """Take the optimizer's state from a file that `optimizer_state` was saved to."""
        tensors = _read(file)
        if not tensors:
            return
        self._optimizer = self._new_optimizer()
        state = {name: torch.zeros_like(self._weights.detach()) for name in ("exp_avg", "exp_avg_sq")}
        for moment, buffer in state.items():
            self._fill(buffer, file, tensors, f"{moment}.")
        step = tensors.get("step")
        if step is None or step.shape:
            raise damaged(file.name, "holds no count of steps")
        # The fused kernel wants it on the parameters' device.
        self._optimizer.state[self._weights] = {"step": step.to(self._weights.device), **state}

    def _flatten(self) -> nn.Parameter:
        size = sum(_padded(parameter) for parameter in self._parameters.values())
        first = next(iter(self._parameters.values()))
        buffer = torch.zeros(size, dtype=torch.float32, device=first.device)
        for parameter, view in zip(self._parameters.values(), self._views(buffer), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        return nn.Parameter(buffer)

    def _views(self, buffer: Tensor) -> list[Tensor]:
        views, offset = [], 0
        for parameter in self._parameters.values():
            views.append(buffer[offset : offset + parameter.numel()].view(parameter.shape))
            offset += _padded(parameter)
        return views

    def _copies(self, buffer: Tensor) -> dict[str, Tensor]:
        views = zip(self._parameters, self._views(buffer), strict=True)
        return {name: view.to("cpu", copy=True).contiguous() for name, view in views}

    def _fill(self, buffer: Tensor, file: Path, tensors: Mapping[str, Tensor], prefix: str) -> None:
        for name, view in zip(self._parameters, self._views(buffer), strict=True):
            tensor = tensors.get(prefix + name)
            if tensor is None or tensor.shape != view.shape:
                raise damaged(file.name, f"lacks {prefix}{name}, or has it in another shape")
            view.copy_(tensor)

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW([self._weights], fused=True)


def _padded(parameter: Tensor) -> int:
    return -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise damaged(file.name, f"cannot be read ({error})") from error
