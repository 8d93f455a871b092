"""The decoder of dense Qwen3 models over packed rows: no padding, no graph, gradients for LoRA factors alone.

What transformers and peft compute, computed with less: rows lie one behind the other instead of side by side, modules
that read the same input share one matrix product, and the backward pass is written by hand, because the base weights
are frozen and need no gradient. `padded.py` serves every other architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tinker_utils.local.engine import attention, lora_linear
from tinker_utils.local.engine.lora_linear import Lora, Projection
from tinker_utils.local.engine.ops import Rotation, normalize, normalize_backward, swiglu, swiglu_backward
from tinker_utils.local.protocol.tensors import Array

MICRO_BATCH_BYTES = 1 << 29
"""Bytes that one micro-batch may keep for its backward pass; a longer row is computed by itself."""


def supports(model: Any) -> bool:
    """Return whether this is a dense Qwen3 model, with nothing configured that the decoder below leaves out."""
    config = model.config
    return (
        type(model).__name__ == "Qwen3ForCausalLM"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and config.attention_dropout == 0
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    )


@dataclass(frozen=True)
class _Context:
    """Shared by all layers of one pass."""

    lora: Lora
    segments: list[attention.Segment]
    rotation: Rotation


@dataclass
class _SavedAttention:
    n: Tensor
    inverse: Tensor
    qkv: lora_linear.SavedInputs
    qk: Tensor
    qk_inverse: Tensor
    attended: list[attention.SavedAttention]
    o: lora_linear.SavedInputs


@dataclass
class _SavedMlp:
    n: Tensor
    inverse: Tensor
    gate_up_input: lora_linear.SavedInputs
    gate_up: Tensor
    down: lora_linear.SavedInputs

    def rows(self, index: Tensor) -> _SavedMlp:
        return _SavedMlp(
            self.n[index],
            self.inverse[index],
            self.gate_up_input.rows(index),
            self.gate_up[index],
            self.down.rows(index),
        )


class _Attention:
    """x + attention(norm(x))."""

    def __init__(self, layer: Any, path: str) -> None:
        module = layer.self_attn
        self.head_dim: int = module.head_dim
        self.norm = layer.input_layernorm
        self.qkv = Projection({f"{path}.self_attn.{name}": getattr(module, name) for name in _QKV})
        self.o = Projection({f"{path}.self_attn.o_proj": module.o_proj})
        q, k, _ = (size // self.head_dim for size in self.qkv.sizes)
        self.heads = [q, k]
        self.eps: float = module.q_norm.variance_epsilon
        self.qk_weight = torch.cat(
            [module.q_norm.weight.expand(q, -1), module.k_norm.weight.expand(k, -1)]
        ).contiguous()

    def forward(self, x: Tensor, context: _Context) -> tuple[Tensor, _SavedAttention]:
        n, inverse = normalize(x, self.norm.variance_epsilon)
        qkv, saved_qkv = self.qkv.forward(n * self.norm.weight, context.lora)
        heads = qkv.view(len(x), -1, self.head_dim)
        qk, v = torch.split(heads, [sum(self.heads), self.heads[1]], 1)
        qk, qk_inverse = normalize(qk, self.eps)
        q, k = torch.split(context.rotation.forward(qk * self.qk_weight), self.heads, 1)
        out, attended = attention.attend(q, k, v, context.segments)
        y, saved_o = self.o.forward(out, context.lora, residual=x)
        return y, _SavedAttention(n, inverse, saved_qkv, qk, qk_inverse, attended, saved_o)

    def backward(self, dy: Tensor, saved: _SavedAttention, context: _Context, active: Tensor | None) -> Tensor:
        """Return dx for dy; rows of dy outside of `active` are zero."""
        dqkv = self._backward_to_qkv(dy, saved, context, active)
        dn = self.qkv.backward(dqkv, saved.qkv, context.lora).mul_(self.norm.weight)
        return normalize_backward(dn, saved.n, saved.inverse).add_(dy)

    def end_backward(self, dy: Tensor, saved: _SavedAttention, context: _Context, active: Tensor | None) -> None:
        """Do as `backward` without dx, in the first layer: below it there is only the embedding, which is frozen."""
        self.qkv.end_backward(self._backward_to_qkv(dy, saved, context, active), saved.qkv, context.lora)

    def _backward_to_qkv(self, dy: Tensor, saved: _SavedAttention, context: _Context, active: Tensor | None) -> Tensor:
        if active is None:
            dout = self.o.backward(dy, saved.o, context.lora)
        else:
            part = self.o.backward(dy[active], saved.o.rows(active), context.lora)
            dout = part.new_zeros(len(dy), part.shape[1]).index_copy_(0, active, part)
        dq, dk, dv = attention.attend_backward(dout, context.segments, saved.attended)
        dqk = context.rotation.backward(torch.cat((dq, dk), 1)).mul_(self.qk_weight)
        dqk = normalize_backward(dqk, saved.qk, saved.qk_inverse)
        return torch.cat((dqk, dv), 1).flatten(1)


class _Mlp:
    """x + mlp(norm(x))."""

    def __init__(self, layer: Any, path: str) -> None:
        module = layer.mlp
        self.norm = layer.post_attention_layernorm
        self.gate_up = Projection({f"{path}.mlp.{name}": getattr(module, name) for name in ("gate_proj", "up_proj")})
        self.down = Projection({f"{path}.mlp.down_proj": module.down_proj})

    def forward(self, x: Tensor, context: _Context) -> tuple[Tensor, _SavedMlp]:
        n, inverse = normalize(x, self.norm.variance_epsilon)
        gate_up, saved_input = self.gate_up.forward(n * self.norm.weight, context.lora)
        y, saved_down = self.down.forward(swiglu(gate_up), context.lora, residual=x)
        return y, _SavedMlp(n, inverse, saved_input, gate_up, saved_down)

    def backward(self, dy: Tensor, saved: _SavedMlp, context: _Context) -> Tensor:
        dproduct = self.down.backward(dy, saved.down, context.lora)
        dgate_up = swiglu_backward(dproduct, saved.gate_up)
        dn = self.gate_up.backward(dgate_up, saved.gate_up_input, context.lora).mul_(self.norm.weight)
        return normalize_backward(dn, saved.n, saved.inverse).add_(dy)


class PackedDecoder:
    """The decoder of a dense Qwen3 model, whose weights it shares."""

    packed = True

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._embedding: Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._norm = decoder.norm
        self._layers = [
            (_Attention(layer, f"model.layers.{number}"), _Mlp(layer, f"model.layers.{number}"))
            for number, layer in enumerate(decoder.layers)
        ]
        self.micro_batch_tokens = max(256, MICRO_BATCH_BYTES // self._saved_bytes(model.config))

    @torch.no_grad()
    def run(self, rows: Sequence[Array], lora: Lora, backward: bool) -> PackedPass:
        """Compute hidden states of rows of tokens, each int64 [T]; with `backward`, keep what their gradient needs."""
        lengths = [len(row) for row in rows]
        device = self._embedding.device
        tokens = torch.from_numpy(np.concatenate(rows)).to(device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)
        x = functional.embedding(tokens, self._embedding)
        cos, sin = self._rotary(x, positions[None])
        context = _Context(lora, attention.segments(lengths), Rotation(cos[0].unsqueeze(1), sin[0].unsqueeze(1)))
        saved: list[tuple[_SavedAttention, _SavedMlp]] = []
        for attend, mlp in self._layers:
            x, saved_attention = attend.forward(x, context)
            x, saved_mlp = mlp.forward(x, context)
            if backward:
                saved.append((saved_attention, saved_mlp))
        n, inverse = normalize(x, self._norm.variance_epsilon)
        return PackedPass(n * self._norm.weight, self, context, saved, n, inverse)

    @torch.no_grad()
    def backward(self, gradient: Tensor, active: Tensor, done: PackedPass) -> None:
        """Add the factors' gradients, for the gradient [n, H] at the positions `active` [n], zero at all others.

        Only these positions have a gradient above the last layer's attention.
        """
        dn = gradient * self._norm.weight
        dx = normalize_backward(dn, done.n[active], done.inverse[active])
        (_, mlp), (_, saved_mlp) = self._layers[-1], done.saved[-1]
        dx = mlp.backward(dx, saved_mlp.rows(active), done.context)
        dy = dx.new_zeros(done.n.shape).index_copy_(0, active, dx)
        last = len(self._layers) - 1
        for number in reversed(range(len(self._layers))):
            attend, mlp = self._layers[number]
            saved_attention, saved_mlp = done.saved.pop()
            if number < last:
                dy = mlp.backward(dy, saved_mlp, done.context)
            arguments = (dy, saved_attention, done.context, active if number == last else None)
            if number > 0:
                dy = attend.backward(*arguments)
            else:
                attend.end_backward(*arguments)

    def _saved_bytes(self, config: Any) -> int:
        """Return about how many bytes a token keeps for the backward pass, at most."""
        projections = self._layers[0][0].qkv
        width = 9 * config.hidden_size + 4 * sum(projections.sizes) + 6 * config.intermediate_size
        width += config.num_attention_heads * attention.MAX_IN_BLOCKS // 2
        return int(width * self._embedding.element_size() * len(self._layers))


@dataclass
class PackedPass:
    """One forward pass: hidden states [N, H], and what their gradient needs."""

    hidden: Tensor
    decoder: PackedDecoder
    context: _Context
    saved: list[tuple[_SavedAttention, _SavedMlp]]
    n: Tensor
    inverse: Tensor

    def backward(self, gradient: Tensor, active: Tensor) -> None:
        """Do as `PackedDecoder.backward`; call it only once, because it frees what was kept."""
        self.decoder.backward(gradient, active, self)


_QKV = ("q_proj", "k_proj", "v_proj")
