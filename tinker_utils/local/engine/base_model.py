"""The base model: loaded once, frozen, shared by every adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from tinker_utils.errors import ServiceError
from tinker_utils.local.engine.compat import cache_argument
from tinker_utils.local.engine.gradients import Decoder
from tinker_utils.local.engine.head import AdaptedHead, FrozenHead, Head
from tinker_utils.local.engine.padded import PaddedDecoder
from tinker_utils.local.engine.qwen3 import PackedDecoder, supports
from tinker_utils.local.protocol.lora import Group

WORTH_SHARING = 1 << 23
"""Multiplications below which one thread alone computes: threads would wait for each other as long as they compute."""


class Base:
    """A causal language model, split into decoder and head, so that logits need not exist for all positions at once.

    Args:
        source: a directory or a hub name.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        dtype: the frozen weights' type; "auto" is bfloat16 on CUDA and float32 on the CPU. Adapters are float32 always.

    Attributes:
        threads: how many compute what is worth sharing.
        part_weights: weights of a layer's linear modules, or of the head if it has more: multiplications a token.

    Raises:
        ServiceError: the model cannot be loaded, or is of a family that this service does not know to split.
    """

    def __init__(self, source: str, device: str = "auto", dtype: str = "auto") -> None:
        self.source = source
        self.device = _device(device)
        self.model = _load(source, self.device, dtype)
        self.vocabulary = int(self.model.config.vocab_size)
        self.max_length = int(getattr(self.model.config, "max_position_embeddings", 1 << 20))
        self.linear_modules = _linear_modules(self.model)
        self._check_split()
        # Before peft replaces modules by its own.
        self._head = self.model.get_output_embeddings()
        self.head_name = next(name for name, module in self.model.named_modules() if module is self._head)
        self.decoder: Decoder = (
            PackedDecoder(self.model) if supports(self.model) else PaddedDecoder(self.hidden, self.device)
        )
        self._tokenizer: Any = None
        self.threads = torch.get_num_threads()
        self.part_weights = _largest_part(self.model)

    @property
    def tokenizer(self) -> Any:
        """Return the model's tokenizer, loaded when something is first spelled out (stop strings are)."""
        if self._tokenizer is None:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
        return self._tokenizer

    @property
    def eos_tokens(self) -> frozenset[int]:
        """Return the tokens that end a text, as the model's generation settings name them."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        if ids is None:
            ids = self.tokenizer.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def share(self, multiplications: int) -> None:
        """Have what follows computed by all threads, or by one if its parts take few multiplications.

        The work alone decides, not how busy the machine is: how many threads add up may change the last bits of a sum.
        """
        torch.set_num_threads(self.threads if multiplications >= WORTH_SHARING else 1)

    def hidden(
        self, tokens: Tensor, cache: Any = None, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the decoder's last hidden states [B, T, H] for tokens [B, T].

        Without a mask they are padded on the right or not at all: a causal model's real positions never look at what
        stands to their right. With a bool mask [B, cached + T] of the real positions, `positions` [B, T] says where
        each token stands.
        """
        decoder = self.model.get_decoder()
        output = decoder(
            input_ids=tokens,
            use_cache=cache is not None,
            attention_mask=mask,
            position_ids=positions,
            **{cache_argument(type(decoder).forward): cache},
        )
        return cast(Tensor, output.last_hidden_state)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., V] of hidden states [..., H]."""
        return cast(Tensor, self.model.get_output_embeddings()(hidden)).float()

    def head(self, adapted: bool) -> Head:
        """Return the head; `adapted` if the active adapter trains it."""
        if adapted or type(self._head) is not nn.Linear or self._head.bias is not None:
            return AdaptedHead(self.model.get_output_embeddings(), self.vocabulary)
        return FrozenHead(self._head.weight)

    def _check_split(self) -> None:
        tokens = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            whole = self.model(input_ids=tokens, use_cache=False).logits.float()
            parts = self.logits(self.hidden(tokens))
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3):
            raise ServiceError(
                f"The model {self.source} changes its logits after its head ({type(self.model).__name__}): "
                "the embedded service does not support that."
            )


def _largest_part(model: Any) -> int:
    head = model.get_output_embeddings()
    sizes = {module: module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)}
    decoder = sum(size for module, size in sizes.items() if module is not head)
    layers: int = model.config.get_text_config().num_hidden_layers
    return max(decoder // layers, int(head.weight.numel()))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ServiceError("--device cuda was asked for, but PyTorch finds no CUDA device: use cpu or auto.")
    return torch.device(name)


def _load(source: str, device: torch.device, dtype: str) -> Any:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    try:
        with _quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                # Only safetensors: the other format is a pickle, which may execute anything.
                source,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise ServiceError(
            f"The model {source!r} cannot be loaded: give a directory with config.json and safetensors, or a name on "
            f"the hub ({type(error).__name__}: {lines[0][:300] if lines else 'no reason given'})."
        ) from error
    return cast(Any, model).to(device).requires_grad_(False).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bars on stderr: it is where a user looks for errors."""
    previous = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)


def _linear_modules(model: Any) -> dict[str, Group]:
    """Return the names of the linear modules that LoRA may adapt, without their paths, each with its group."""
    head = model.get_output_embeddings()
    modules: dict[str, Group] = {}
    for path, module in model.named_modules():
        group: Group | None = "unembed" if module is head else _group(path)
        if isinstance(module, nn.Linear) and group is not None:
            name = path.rpartition(".")[2]
            if modules.setdefault(name, group) != group:
                raise ServiceError(f"The model has modules named {name!r} in several groups: that is not supported.")
    return modules


def _group(path: str) -> Group | None:
    parts = path.lower().split(".")
    if any("attn" in part or "attention" in part for part in parts):
        return "attn"
    return "mlp" if any("mlp" in part or "feed_forward" in part for part in parts) else None
