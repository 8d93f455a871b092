"""`fit` on the embedded service beside the engine called directly: what loop, SDK and protocol cost together."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import alternate, medians, table
from peer import Peer
from shapes import PROJECTIONS, Shape, make_model

from data import lines
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.preparing import prepare
from tinker_utils.service.client import connect
from tinker_utils.training.start import fit_blocking

STEPS = 24
SHAPES = {
    "vocabulary 4,096": Shape(),
    "vocabulary 151,936": Shape(vocabulary=151_936),
    "batch 16": Shape(batch=16),
}

NOTE = f"""\
Milliseconds a step, medians of alternating rounds of {STEPS} steps on the same rows: chats of about 90 words, of which
the answer is a third; the models and adapters of the section above. `fit` logs every step. Its first step, which waits
for the model to be made, is left out."""


def settings(shape: Shape, model: Path, data: Path) -> TrainingConfig:
    """One epoch, every step logged, and nothing but steps."""
    return TrainingConfig(
        service="local",
        model=str(model),
        lora=LoraConfig(shape.rank, shape.alpha, shape.dropout, tuple(PROJECTIONS)),
        epochs=1,
        batch_size=shape.batch,
        log_interval_steps=1,
        eval_interval_steps=0,
        eval_at_epoch_end=False,
        checkpoint_interval_steps=0,
        early_stopping_patience=0,
        data_dir=data,
    )


def rows_of(plan: Plan) -> list[tuple[list[int], int]]:
    """The rows in the order in which they are trained on: tokens, and how many of them are the prompt."""
    batches = (plan.batches.batch(step) for step in range(1, plan.total_steps + 1))
    return [
        ([*example.input_tokens.tolist(), int(example.target_tokens[-1])], int(np.argmax(example.weights > 0)) + 1)
        for batch in batches
        for example in batch.data
    ]


def measure(name: str, shape: Shape, rounds: int) -> list[object]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        model = make_model(shape, folder / "model")
        (folder / "data").mkdir()
        (folder / "data" / "train.jsonl").write_bytes(b"".join(lines(60, 30, STEPS * shape.batch)))
        config = settings(shape, model, folder / "data")
        plan = prepare(config)
        file = folder / "rows.json"
        file.write_text(json.dumps(rows_of(plan)), encoding="utf-8")
        arguments = (str(model), shape.to_json(), str(file), str(STEPS), str(shape.dropout), "cpu")
        with (
            Peer(sys.executable, "peer_engine.py", *arguments) as engine,
            connect(config, folder / "store") as service,
        ):

            def fitted() -> float:
                moments = []
                run = Path(tempfile.mkdtemp(dir=folder)) / "run"
                fit_blocking(
                    config,
                    run,
                    service=service,
                    preparation=plan,
                    on_record=lambda record: moments.append(time.perf_counter()) if record["type"] == "train" else None,
                )
                return 1000 * (moments[-1] - moments[0]) / (len(moments) - 1)

            runs = {"engine": lambda: 1000 * engine.round()["seconds"] / STEPS, "fit": fitted}
            for run in runs.values():
                run()
            found = medians(alternate(runs, rounds))
    return [name, found["engine"], found["fit"], f"{found['fit'] / found['engine'] - 1:.0%}"]


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = [measure(name, shape, options.rounds) for name, shape in SHAPES.items()]
    print(f"## The loop beside the bare engine\n\n{NOTE}\n\n{table(['', 'engine, ms', 'fit, ms', 'overhead'], rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
