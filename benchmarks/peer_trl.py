"""TRL's SFTTrainer with peft, as its own documentation sets it up, stopping after each round of steps.

Arguments: the model's directory, the shape and the rows as JSON, steps a round, the dropout, the device.
Runs in TRL's environment, which has neither tinker nor this project installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl
from peer import await_round, peak_mib, tell
from shapes import PROJECTIONS, Shape


class Rounds(transformers.TrainerCallback):
    """Waits before each round, and says after it how long it took."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.began: tuple[float, float] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before each optimizer step."""
        if state.global_step % self.steps:
            return
        if self.began is None:
            tell({})
        else:
            _finish(self.began, state)
        await_round()
        self.began = time.perf_counter(), time.process_time()


def _finish(began: tuple[float, float], state: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    tell({"seconds": seconds, "cpu_seconds": cpu, "first_loss": losses[0], "peak_mib": peak_mib(), "gpu_mib": gpu})


def main(model: str, shape_json: str, rows_file: str, steps: str, dropout: str, device: str) -> None:
    """Train until nobody asks for a further round."""
    shape = Shape.from_json(shape_json)
    rows = json.loads(Path(rows_file).read_text(encoding="utf-8"))
    dataset = datasets.Dataset.from_list(
        [{"input_ids": t, "completion_mask": [0] * prompt + [1] * (len(t) - prompt)} for t, prompt in rows]
    )
    arguments = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.batch,
        num_train_epochs=10_000,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_length=None,
        completion_only_loss=True,
        # Its best: recomputing activations costs a third of the time, and a CPU has no bf16 units to speak of.
        gradient_checkpointing=False,
        bf16=shape.dtype == "bfloat16",
        use_cpu=device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, shape.dtype)),
        args=arguments,
        train_dataset=dataset,
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        peft_config=peft.LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=float(dropout),
            target_modules=PROJECTIONS,
            task_type="CAUSAL_LM",
        ),
        callbacks=[Rounds(int(steps))],
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
