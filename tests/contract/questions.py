"""The questions. Each answers in a few words, "ok" where the engine does what the project needs.

What a run asks for in any case is what the probe of `preflight` asks, so its findings are answers here, too.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch

from tinker_utils.batching import Batch, Example
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.errors import CheckpointGoneError
from tinker_utils.local.server.model_source import PACKAGED_DIRECTORY, PACKAGED_NAME
from tinker_utils.service.client import Service
from tinker_utils.service.model import Model
from tinker_utils.service.probe import probe_server

WAIT_S = 900
PROBED = (
    "restores", "restores_optimizer", "exports", "deletes", "sums_weights", "splits", "clips", "samples",
    "samples_trained", "unharmed",
)  # fmt: skip
_RATE = 1e-2


def example(*tokens: int, prompt: int = 2) -> Example:
    """Return an example whose first tokens are the prompt."""
    return Example(np.array(tokens, np.int32), np.array([i >= prompt for i in range(1, len(tokens))], np.float32))


BATCH = Batch((example(5, 6, 7, 8), example(9, 10, 11, 12, 13)))
OTHER = Batch((example(30, 31, 32, 33, 34), example(40, 41, 42)))


@dataclass
class Engine:
    """The engine that is asked, and what is known of it already."""

    service: Service
    config: TrainingConfig
    probe: Any = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def model_directory(self) -> Path | None:
        """Return the base model's directory, if it lies on this machine."""
        name = self.config.model
        directory = Path(PACKAGED_DIRECTORY if name == PACKAGED_NAME else name)
        return directory if directory.is_dir() else None

    def new_model(self) -> Model:
        return self.service.new_model(self.config)


def engine(service: Service, model: str, address: str) -> Engine:
    """Return an engine to ask, with adapters of rank 4 and no dropout."""
    return Engine(service, TrainingConfig(service=address, model=model, lora=LoraConfig(rank=4, dropout=0.0)))


def step(model: Model, batch: Batch = BATCH, rate: float = _RATE) -> tuple[Any, dict[str, float]]:
    submitted = model.submit_step(batch, rate, 0.0, 0.0)
    for future in submitted.futures:
        future.result(WAIT_S)
    return submitted.result()


def total(model: Model, batch: Batch = BATCH) -> float:
    submitted = model.submit_evaluation([batch])
    submitted.futures[0].result(WAIT_S)
    return submitted.result()[0].total


def save(model: Model, name: str) -> str:
    submitted = model.submit_save(name)
    submitted.futures[0].result(WAIT_S)
    return submitted.result()


def same(one: float, other: float, within: float = 1e-3) -> bool:
    return abs(one - other) <= within


def off(one: float, other: float) -> str:
    return "ok" if same(one, other) else f"off by {abs(one - other):.2g} nats"


def plain_totals(directory: Path, adapter: Path | None = None) -> float:
    """Return the loss of the batch by transformers, and peft where there is an adapter: nothing of this project."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    loss = 0.0
    with torch.no_grad():
        for row in BATCH.data:
            logprobs = model(torch.tensor([row.input_tokens.tolist()])).logits[0].log_softmax(-1)
            targets = torch.tensor(row.target_tokens.tolist())
            loss -= float((logprobs.gather(1, targets[:, None])[:, 0] * torch.tensor(row.weights)).sum())
    return loss


def names_its_models(engine: Engine) -> str:
    return "ok" if engine.config.model in engine.service.served_models() else "another name"


def a_fresh_adapter_is_the_base_model(engine: Engine) -> str:
    if engine.model_directory is None:
        return "not compared"
    return off(total(engine.new_model()), plain_totals(engine.model_directory))


def loss_sum_is_that_of_the_logprobs(engine: Engine) -> str:
    loss, _ = step(engine.new_model())
    if loss.reported is None:
        return "no loss:sum"
    return "ok" if same(loss.reported, loss.total, 1e-2) else "another sum"


def gives_the_gradients_norm(engine: Engine) -> str:
    return "ok" if step(engine.new_model())[1].get("grad_norm", 0.0) > 0 else "none"


def a_rate_of_zero_changes_nothing(engine: Engine) -> str:
    model = engine.new_model()
    before = total(model)
    step(model, rate=0.0)
    return off(total(model), before)


def requests_run_in_their_order(engine: Engine) -> str:
    """An evaluation that is queued between two steps sees the first and not the second."""
    model, alone = engine.new_model(), engine.new_model()
    first = model.submit_step(BATCH, _RATE, 0.0, 0.0)
    between = model.submit_evaluation([BATCH])
    second = model.submit_step(BATCH, _RATE, 0.0, 0.0)
    for future in (*first.futures, *between.futures, *second.futures):
        future.result(WAIT_S)
    loss_at_second, _ = second.result()
    step(alone)
    return "ok" if same(between.result()[0].total, loss_at_second.total, 1e-2) else "another order"


def a_save_replaces_one_of_its_name(engine: Engine) -> str:
    model = engine.new_model()
    save(model, "again")
    step(model)
    later = total(model)
    return off(total(engine.service.restored_model(save(model, "again"), engine.config)), later)


def checkpoints_are_listed(engine: Engine) -> str:
    model = engine.new_model()
    path = save(model, "listed")
    return "ok" if path in dict(engine.service.checkpoints_of(model.run_id)) else "not there"


def a_checkpoint_can_be_made_to_expire(engine: Engine) -> str:
    model = engine.new_model()
    path = save(model, "expiring")
    engine.service.expire_checkpoint(path, 3600).result(WAIT_S)
    return "ok" if dict(engine.service.checkpoints_of(model.run_id)).get(path) else "lasts"


def a_checkpoint_that_is_gone_is_said_to_be(engine: Engine) -> str:
    model = engine.new_model()
    path = save(model, "gone")
    engine.service.delete_checkpoint(path).result(WAIT_S)
    try:
        engine.service.restored_model(path, engine.config)
    except CheckpointGoneError:
        return "ok"
    return "restored"


def another_client_changes_nothing(engine: Engine) -> str:
    model, beside = engine.new_model(), engine.new_model()
    step(model)
    before = total(model)
    for _ in range(3):
        submitted = beside.submit_step(OTHER, _RATE, 0.1, 0.0)
        for future in submitted.futures:
            future.result(WAIT_S)
    after = total(model)
    return "ok" if same(after, before, 1e-5) else f"moved by {abs(after - before):.2g} nats"


def an_exported_adapter_is_the_trained_one(engine: Engine) -> str:
    if engine.model_directory is None:
        return "not compared"
    model = engine.new_model()
    for _ in range(2):
        step(model)
    trained, path = total(model), save(model, "exported")
    with tempfile.TemporaryDirectory() as directory:
        adapter = Path(directory) / "adapter"
        engine.service.download_adapter(path, adapter)
        engine.notes["alpha"] = str(json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"])
        return off(plain_totals(engine.model_directory, adapter), trained)


def a_sample_stops_where_it_is_told(engine: Engine) -> str:
    (written,) = engine.service.sample([[5, 6, 7]], max_tokens=4)
    if len(written) > 4:
        return "too long"
    (stopped,) = engine.service.sample([[5, 6, 7]], max_tokens=4, stop=[written[0]])
    return "ok" if stopped in ([written[0]], []) else "runs on"


def a_loss_of_ones_own(engine: Engine) -> str:
    def loss(data: Any, logprobs: Any) -> tuple[Any, dict[str, float]]:
        return -sum(each.sum() for each in logprobs), {}

    client = engine.new_model().client
    tokens = tinker.ModelInput.from_ints([5, 6, 7])
    data = [tinker.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": np.array([6, 7, 8])})]
    client.forward_backward_custom(data, loss).result(WAIT_S)
    return "ok"


QUESTIONS: dict[str, Callable[[Engine], str]] = {
    question.__name__.replace("_", " "): question
    for question in (
        names_its_models,
        a_fresh_adapter_is_the_base_model,
        loss_sum_is_that_of_the_logprobs,
        gives_the_gradients_norm,
        a_rate_of_zero_changes_nothing,
        requests_run_in_their_order,
        a_save_replaces_one_of_its_name,
        checkpoints_are_listed,
        a_checkpoint_can_be_made_to_expire,
        a_checkpoint_that_is_gone_is_said_to_be,
        another_client_changes_nothing,
        an_exported_adapter_is_the_trained_one,
        a_sample_stops_where_it_is_told,
        a_loss_of_ones_own,
    )
}


def answers(engine: Engine) -> Iterator[tuple[str, str]]:
    """Yield each question and its answer; what the engine refuses is "refused", with its words in the notes."""
    for name, ask in QUESTIONS.items():
        try:
            yield name, ask(engine)
        except Exception as error:
            engine.notes[name] = f"{type(error).__name__}: {error}"
            yield name, "refused"
    engine.probe = probe_server(engine.service, dataclasses.replace(engine.config))
    for name in PROBED:
        yield (
            f"probe: {name.replace('_', ' ')}",
            {True: "ok", False: "no", None: "not known"}[getattr(engine.probe, name)],
        )
    engine.notes.update({f"probe: {name}": said for name, said in engine.probe.refusals.items()})
