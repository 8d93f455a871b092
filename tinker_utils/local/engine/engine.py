"""The engine: a frozen base model and the LoRA adapters that peft puts on it, one for each model of a client.

Everything here runs on the compute thread. An operation first makes its adapter the active one, and seeds whatever
randomness it uses from the model's own seed and counters. So neither other models, nor evaluations, nor a restart
between two steps can change what a step computes.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import peft
import safetensors.torch
import torch

from tinker_utils.local.engine.adapter import Adapter
from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.dropout import Masks
from tinker_utils.local.engine.gradients import LossOutput, Network, compute
from tinker_utils.local.engine.lora_linear import Lora
from tinker_utils.local.engine.losses import Loss, check_loss, choose
from tinker_utils.local.engine.sampling import SampleOutput, sample
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.queries import SampleQuery
from tinker_utils.local.protocol.requests import AdamParams
from tinker_utils.local.protocol.tensors import LossRequest, decode_loss_request
from tinker_utils.local.store.checkpoint import ModelProgress, StoredCheckpoint

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"

SAMPLERS_KEPT = 8
"""Adapters that are loaded only to sample from; the one unused for longest makes room."""


@dataclass(frozen=True)
class SavedWeights:
    """Adapter weights on disk, to sample from."""

    file: Path
    spec: LoraSpec


class Engine:
    """Models by their ids, over one base model."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._models: dict[str, Adapter] = {}
        self._samplers: collections.OrderedDict[Path, Adapter] = collections.OrderedDict()
        self._peft: Any = None
        self._active: Adapter | None = None
        self._names = (f"adapter{number}" for number in itertools.count())

    def create(self, model_id: str, spec: LoraSpec) -> None:
        """Make a model with fresh weights, which depend on nothing but the spec."""
        self._models[model_id] = self._build(spec)

    def create_from(self, model_id: str, checkpoint: StoredCheckpoint, optimizer: bool) -> None:
        """Make a model of a checkpoint's weights, and of its optimizer's state if asked for."""
        adapter = self._build(checkpoint.info.lora)
        try:
            self._restore(adapter, checkpoint, optimizer)
        except BaseException:
            self._remove(adapter)
            raise
        self._models[model_id] = adapter

    def load(self, model_id: str, checkpoint: StoredCheckpoint, optimizer: bool) -> None:
        """Replace a model's weights by a checkpoint's; the optimizer starts anew unless it is loaded, too."""
        adapter = self._model(model_id)
        ours, theirs = adapter.spec, checkpoint.info.lora
        if ours.shape() != theirs.shape():
            raise RequestError(
                f"The checkpoint {checkpoint.info.reference.path} has rank {theirs.rank} on "
                f"{', '.join(theirs.target_modules)}, but this model has rank {ours.rank} on "
                f"{', '.join(ours.target_modules)}."
            )
        self._restore(adapter, checkpoint, optimizer)

    def unload(self, model_id: str) -> None:
        """Forget a model, if there is one."""
        adapter = self._models.pop(model_id, None)
        if adapter is not None:
            self._remove(adapter)

    def forward_backward(self, model_id: str, request: Any, sparse: bool = False) -> LossOutput:
        """Compute the loss of a parsed ForwardBackwardRequest, and add its gradient to what has accumulated.

        A call that fails spoils the gradient: the next optimizer step fails rather than step with a part of it.
        Log-probabilities are those of every position; if `sparse`, only of those that the loss weighs.
        """
        adapter = self._model(model_id)
        if request.forward_only:
            return self._evaluate(adapter, decode_loss_request(request), sparse)
        try:
            return self._differentiate(adapter, decode_loss_request(request), sparse)
        except BaseException as error:
            adapter.gradient_fault = str(error)
            raise

    def optim_step(self, model_id: str, params: AdamParams) -> dict[str, float]:
        """Take one step of AdamW; its metric `grad_norm` is the global norm of the gradient before clipping.

        A norm that is NaN or infinite cannot be sent in JSON: the metric is then `grad_norm_nonfinite`, which is 1.
        """
        adapter = self._model(model_id)
        fault = adapter.gradient_fault
        if fault is not None:
            adapter.clear_gradient()
            raise RequestError(f"optim_step was skipped, because a forward_backward before it failed: {fault}")
        if not adapter.has_gradient:
            raise RequestError("optim_step was skipped, because no forward_backward came before it.")
        self.base.share(adapter.size)
        norm = adapter.step(params)
        adapter.progress = msgspec.structs.replace(adapter.progress, optim_steps=adapter.progress.optim_steps + 1)
        return {"grad_norm": norm} if math.isfinite(norm) else {"grad_norm_nonfinite": 1.0}

    def write(self, model_id: str, directory: Path, optimizer: bool) -> None:
        """Write a model as a PEFT adapter into a directory, with its optimizer's state if asked for."""
        adapter = self._model(model_id)
        safetensors.torch.save_file(adapter.weights(), directory / ADAPTER_FILE, {"format": "pt"})
        config: dict[str, Any] = _lora_config(adapter.spec).to_dict()  # type: ignore[no-untyped-call]
        config.update(base_model_name_or_path=adapter.spec.base_model, inference_mode=True)
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
        (directory / ADAPTER_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        if optimizer:
            safetensors.torch.save_file(adapter.optimizer_state(), directory / OPTIMIZER_FILE)

    def spec(self, model_id: str) -> LoraSpec:
        """Return what a model was built from."""
        return self._model(model_id).spec

    def progress(self, model_id: str) -> ModelProgress:
        """Return how far a model was trained."""
        return self._model(model_id).progress

    def sample(self, weights: SavedWeights | None, queries: Sequence[SampleQuery]) -> list[SampleOutput]:
        """Draw sequences for each query from saved weights, or from the base model if there are none."""
        with self._activated(None if weights is None else self._sampler(weights)):
            return sample(self.base, queries)

    def _evaluate(self, adapter: Adapter, request: LossRequest, sparse: bool) -> LossOutput:
        loss, options = self._prepare(request, sparse)
        with self._activated(adapter):
            return compute(self._network(adapter), request.data, loss, options, backward=False)

    def _differentiate(self, adapter: Adapter, request: LossRequest, sparse: bool) -> LossOutput:
        loss, options = self._prepare(request, sparse)
        done = adapter.progress.forward_backwards
        seed = _seed(adapter.spec.seed, "dropout", done)
        dropout = adapter.spec.dropout
        with self._activated(adapter):
            adapter.prepare_gradient()
            adapter.train(True)
            try:
                masks = Masks(seed, dropout, self.base.device) if dropout else None
                output = compute(self._network(adapter, masks), request.data, loss, options, backward=True)
            finally:
                adapter.train(False)
        adapter.progress = msgspec.structs.replace(adapter.progress, forward_backwards=done + 1)
        adapter.has_gradient = True
        return output

    def _prepare(self, request: LossRequest, sparse: bool) -> tuple[Loss, dict[str, float]]:
        """Return a request's loss and options, checked; its threads are chosen."""
        loss, options = choose(request, sparse)
        check_loss(request, loss, self.base.vocabulary, self.base.max_length)
        self.base.share(sum(len(datum.tokens) for datum in request.data) * self.base.part_weights)
        return loss, options

    def _network(self, adapter: Adapter, masks: Masks | None = None) -> Network:
        factors = adapter.factors()
        lora = Lora(factors, adapter.spec.alpha / adapter.spec.rank, masks)
        return Network(self.base.decoder, lora, self.base.head(self.base.head_name in factors), self.base.device)

    def _model(self, model_id: str) -> Adapter:
        adapter = self._models.get(model_id)
        if adapter is None:
            raise RequestError(f"The model {model_id} does not exist: its creation failed, or it was unloaded.", 404)
        return adapter

    def _restore(self, adapter: Adapter, checkpoint: StoredCheckpoint, optimizer: bool) -> None:
        if optimizer and not checkpoint.info.has_optimizer:
            raise RequestError(f"The checkpoint {checkpoint.info.reference.path} holds no optimizer state.")
        adapter.load_weights(checkpoint.file(ADAPTER_FILE))
        if optimizer:
            adapter.load_optimizer(checkpoint.file(OPTIMIZER_FILE))
        adapter.progress = checkpoint.info.progress

    def _sampler(self, weights: SavedWeights) -> Adapter:
        adapter = self._samplers.pop(weights.file, None)
        if adapter is None:
            if len(self._samplers) >= SAMPLERS_KEPT:
                self._remove(self._samplers.popitem(last=False)[1])
            adapter = self._build(weights.spec)
            try:
                adapter.load_weights(weights.file)
            except BaseException:
                self._remove(adapter)
                raise
        self._samplers[weights.file] = adapter
        return adapter

    def _build(self, spec: LoraSpec) -> Adapter:
        name = next(self._names)
        _seed(spec.seed, "weights", 0)
        with warnings.catch_warnings():
            # peft warns that adapting a head tied to the embedding leaves the embedding as it is: as intended.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            # peft asks transformers for an attribute by its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            if self._peft is None:
                self._peft = peft.get_peft_model(self.base.model, _lora_config(spec), adapter_name=name).eval()
            else:
                self._peft.add_adapter(name, _lora_config(spec))
        self._active = None
        part = f".{name}."
        parameters = {key.replace(part, "."): value for key, value in self._peft.named_parameters() if part in key}
        dropouts = [module for key, module in self._peft.named_modules() if key.endswith(f".lora_dropout.{name}")]
        adapter = Adapter(name, spec, parameters, dropouts)
        adapter.train(False)
        return adapter

    def _remove(self, adapter: Adapter) -> None:
        with warnings.catch_warnings():
            # Which adapter is active is decided anew before each operation.
            warnings.filterwarnings("ignore", message=".*was active which is now deleted.*")
            self._peft.delete_adapter(adapter.name)
        self._active = None

    @contextlib.contextmanager
    def _activated(self, adapter: Adapter | None) -> Iterator[None]:
        """Activate this adapter alone on the base model, or none."""
        if adapter is not None and self._active is not adapter:
            self._peft.set_adapter(adapter.name)
            self._active = adapter
        plain = adapter is None and self._peft is not None
        if plain:
            self._peft.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            if plain:
                self._peft.base_model.enable_adapter_layers()
                self._active = None


def _lora_config(spec: LoraSpec) -> peft.LoraConfig:
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    return peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=spec.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r, and takes a fraction as well
        lora_dropout=spec.dropout,
        target_modules=list(spec.target_modules),
        bias="none",
    )


def _seed(seed: int, purpose: str, count: int) -> int:
    """Seed torch with a function of these three alone, and return that seed, from 0 to 2⁶³ - 1."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{count}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    torch.manual_seed(number)
    return number
