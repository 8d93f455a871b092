"""Write the example logs: `python data/examples/make_runs.py` makes the directories in `runs/` beside it.

No model was trained for them. They are small synthetic logs, one course of learning told in four formats, for the
notebook that reads runs and for the tests: falling losses, with an overfitting that starts in the second epoch.

| directory | written as | its losses |
|---|---|---|
| no-stopping, early-stopping | this project's run directories | nats per completion token |
| summed | this project's metrics.jsonl of old | nats, summed over a batch |
| cookbook | tinker-cookbook's metrics.jsonl and config.json | nats, mean of example means |
| trainer | Hugging Face's trainer_state.json in a checkpoint | nats, mean of batch means |

All but the summed one have a second validation set, `general`, which shows what is forgotten.

The files come from the seed alone: the same bytes each time.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 2025
STEPS_PER_EPOCH = 40
EVALUATE_EVERY = 10
LOG_EVERY = 2
BATCH_SIZE = 32
TOKENS_PER_STEP = BATCH_SIZE * 500
ANSWER_TOKENS_PER_STEP = BATCH_SIZE * 120
VALIDATION_TOKENS, VALIDATION_ANSWER_TOKENS = 50_000, 12_000
USD_PER_MILLION = 0.40
LEARNING_RATE = 2e-4
PATIENCE, THRESHOLD = 3, 0.01
STARTED = 1_750_000_000
SECONDS_PER_STEP = 4

Record = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """How a run learns, in nats per completion token."""

    name: str
    epochs: int
    overfitting: float
    """Nats by which the validation loss rises in each epoch after the first."""
    scale: float = 1.0
    """What the run's unit makes of a nat per completion token."""

    @property
    def steps(self) -> int:
        """Steps in all epochs."""
        return self.epochs * STEPS_PER_EPOCH

    def noise(self) -> random.Random:
        """A generator of its own for each run, so that one can be changed alone."""
        return random.Random(f"{SEED} {self.name}")

    def train_loss(self, step: int, noise: random.Random) -> float:
        """The loss on the batch of a step, from 1: it falls on and on, as answers are memorized."""
        memorized = self.overfitting * late_epochs(step)
        return round(self.scale * (1.0 + 1.9 * math.exp(-step / 14) - memorized + noise.gauss(0, 0.05)), 4)

    def valid_loss(self, step: int, noise: random.Random) -> float:
        """The loss on held-out data after so many steps: it falls, and rises with what is memorized."""
        risen = self.overfitting * late_epochs(step)
        return round(self.scale * (1.1 + 1.9 * math.exp(-step / 14) + risen + noise.gauss(0, 0.004)), 4)

    def general_loss(self, step: int) -> float:
        """The loss on a second validation set, of what the model could do before: it forgets from the start."""
        return round(self.scale * (1.3 + 0.1 * step / STEPS_PER_EPOCH + self.overfitting * late_epochs(step)), 4)


def late_epochs(step: int) -> float:
    """Epochs trained after the first."""
    return max(0.0, step / STEPS_PER_EPOCH - 1)


def epoch_of(step: int) -> int:
    """The epoch, from 1, of a step, from 1."""
    return (step - 1) // STEPS_PER_EPOCH + 1


def own_records(course: Course, stops_early: bool) -> Iterator[Record]:
    """A run of this project, with early stopping or without."""
    noise = course.noise()
    anchor, best, best_step, since = math.inf, math.inf, 0, 0
    for step in range(1, course.steps + 1):
        evaluated = (step - 1) // EVALUATE_EVERY
        common = {"timestamp": STARTED + step * SECONDS_PER_STEP, "step": step, "epoch": epoch_of(step)}
        if step % LOG_EVERY == 0:
            yield {"type": "train", **common, **own_train_fields(course.train_loss(step, noise), step, evaluated)}
        if step % EVALUATE_EVERY == 0:
            loss = course.valid_loss(step, noise)
            yield {"type": "val", **common, "set": "task", **own_valid_fields(loss), "is_best": loss < best}
            yield {"type": "val", **common, "set": "general", **own_valid_fields(course.general_loss(step))}
            best, best_step = min((best, best_step), (loss, step))
            anchor, since = (loss, 0) if loss < anchor - THRESHOLD else (anchor, since + 1)
        if stops_early and since == PATIENCE:
            break
    ends = {"timestamp": common["timestamp"], "step": step}
    verdict = {"best_val_loss": best, "best_step": best_step}
    if stops_early and since == PATIENCE:
        yield {"type": "early_stop", **ends, **verdict, "evals_without_improvement": since}
        yield {"type": "end", **ends, "status": "early_stopped", "reason": "No improvement.", **verdict}
    else:
        yield {"type": "end", **ends, "status": "completed", "reason": "All epochs are done.", **verdict}


def own_train_fields(loss: float, step: int, evaluations: int) -> Record:
    """The rest of a train record, pooled over the steps since the last one."""
    answer_tokens = LOG_EVERY * ANSWER_TOKENS_PER_STEP
    spent = step * TOKENS_PER_STEP + evaluations * VALIDATION_TOKENS
    return {
        "train_loss": loss,
        "train_loss_total": round(loss * answer_tokens, 2),
        "tokens_per_sec": TOKENS_PER_STEP / SECONDS_PER_STEP,
        "tokens": LOG_EVERY * TOKENS_PER_STEP,
        "completion_tokens": answer_tokens,
        "tokens_seen": step * TOKENS_PER_STEP,
        "learning_rate": LEARNING_RATE,
        "cost_usd": round(spent * USD_PER_MILLION / 1e6, 6),
    }


def own_valid_fields(loss: float) -> Record:
    """The rest of a val record."""
    return {
        "val_loss": loss,
        "val_batches": 4,
        "val_loss_total": round(loss * VALIDATION_ANSWER_TOKENS, 2),
        "completion_tokens": VALIDATION_ANSWER_TOKENS,
        "val_loss_stderr": 0.02,
        "perplexity": round(math.exp(loss), 4),
    }


def own_config(epochs: int, rank: int, alpha: int, dropout: float, patience: int) -> str:
    """A run's config.yaml, as far as the examples need it."""
    return f"""\
# Synthetic, as all of this directory: written by data/examples/make_runs.py.
run:
  service: tinker
  model: Qwen/Qwen3-8B
  lora:
    rank: {rank}
    alpha: {alpha}
    dropout: {dropout}
  training:
    epochs: {epochs}
    batch_size: {BATCH_SIZE}
    learning_rate: {LEARNING_RATE}
    lr_schedule: constant
    eval_interval_steps: {EVALUATE_EVERY}
    early_stopping_patience: {patience}
"""


def summed_records(course: Course) -> Iterator[Record]:
    """A metrics file from before losses were divided by the tokens they were summed over."""
    noise = course.noise()
    for step in range(1, course.steps + 1):
        common = {"timestamp": STARTED + step * SECONDS_PER_STEP, "step": step, "epoch": epoch_of(step)}
        if step % LOG_EVERY == 0:
            loss = round(course.train_loss(step, noise), 1)
            yield {"type": "train", **common, "train_loss": loss, "tokens_per_sec": 500.0}
        if step % STEPS_PER_EPOCH == 0:
            yield {"type": "val", **common, "val_loss": round(course.valid_loss(step, noise), 1), "val_batches": 20}


def cookbook_rows(course: Course) -> Iterator[Record]:
    """The cookbook counts steps and epochs from 0, and evaluates before a step."""
    noise = course.noise()
    usd = TOKENS_PER_STEP * USD_PER_MILLION / 1e6
    for step in range(course.steps):
        row = {
            "step": step,
            "epoch": step // STEPS_PER_EPOCH,
            "progress": round((step + 1) / course.steps, 4),
            "learning_rate": LEARNING_RATE,
            "num_sequences": BATCH_SIZE,
            "num_tokens": TOKENS_PER_STEP,
            "num_loss_tokens": float(BATCH_SIZE),
            "train_mean_nll": course.train_loss(step + 1, noise),
            "tokens/cumulative/trained": (step + 1) * TOKENS_PER_STEP,
            "cost/cumulative_usd": round((step + 1) * usd, 6),
        }
        if step % EVALUATE_EVERY == 0:
            row |= {"test/nll": course.valid_loss(step, noise), "general/nll": course.general_loss(step)}
        yield row | {"time/total": float(SECONDS_PER_STEP)}


COOKBOOK_CONFIG = {
    "log_path": "synthetic: written by data/examples/make_runs.py",
    "model_name": "Qwen/Qwen3-8B",
    "dataset_builder": {"common_config": {"batch_size": BATCH_SIZE, "max_length": 2048}},
    "learning_rate": LEARNING_RATE,
    "lr_schedule": "constant",
    "num_epochs": 2,
    "lora_rank": 32,
    "eval_every": EVALUATE_EVERY,
}


def trainer_history(course: Course) -> Iterator[Record]:
    """The Trainer's entries: training and evaluation apart."""
    noise = course.noise()
    for step in range(LOG_EVERY, course.steps + 1, LOG_EVERY):
        common = {"epoch": step / STEPS_PER_EPOCH, "num_input_tokens_seen": step * TOKENS_PER_STEP, "step": step}
        yield {"grad_norm": 1.0, "learning_rate": LEARNING_RATE, "loss": course.train_loss(step, noise), **common}
        if step % EVALUATE_EVERY == 0:
            yield {"eval_task_loss": course.valid_loss(step, noise), "eval_task_runtime": 2.0, **common}
            yield {"eval_general_loss": course.general_loss(step), "eval_general_runtime": 2.0, **common}


def trainer_state(course: Course) -> Record:
    """A trainer_state.json without what nobody reads."""
    return {
        "epoch": float(course.epochs),
        "global_step": course.steps,
        "log_history": list(trainer_history(course)),
        "max_steps": course.steps,
        "num_train_epochs": course.epochs,
        "trial_name": "synthetic: written by data/examples/make_runs.py",
    }


TRAINER_ADAPTER = {"base_model_name_or_path": "Qwen/Qwen3-8B", "lora_alpha": 16, "lora_dropout": 0.1, "r": 8}


def write_runs(directory: Path) -> None:
    """Write all example runs."""
    no_stopping = own_records(Course("no-stopping", epochs=3, overfitting=0.25), stops_early=False)
    early_stopping = own_records(Course("early-stopping", epochs=3, overfitting=0.15), stops_early=True)
    trainer = Course("trainer", epochs=2, overfitting=0.08, scale=1.05)
    checkpoint = f"trainer/checkpoint-{trainer.steps}"
    files = {
        "no-stopping/metrics.jsonl": lines(no_stopping),
        "no-stopping/config.yaml": own_config(epochs=3, rank=64, alpha=128, dropout=0.0, patience=0),
        "early-stopping/metrics.jsonl": lines(early_stopping),
        "early-stopping/config.yaml": own_config(epochs=3, rank=16, alpha=32, dropout=0.05, patience=PATIENCE),
        "summed/metrics.jsonl": lines(summed_records(Course("summed", epochs=3, overfitting=0.2, scale=96))),
        "cookbook/metrics.jsonl": lines(cookbook_rows(Course("cookbook", epochs=2, overfitting=0.1, scale=1.12))),
        "cookbook/config.json": json.dumps(COOKBOOK_CONFIG, indent=2) + "\n",
        f"{checkpoint}/trainer_state.json": json.dumps(trainer_state(trainer), indent=1) + "\n",
        f"{checkpoint}/adapter_config.json": json.dumps(TRAINER_ADAPTER, indent=2) + "\n",
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content, encoding="utf-8", newline="\n")


def lines(records: Iterable[Record]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    write_runs(Path(__file__).resolve().parent / "runs")
