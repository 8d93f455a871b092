"""Training and evaluation on the embedded service, through the SDK, beside TRL's SFTTrainer and the bare engine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tinker
from measure import alternate, medians, say, table
from peer import BENCH_PYTHON, Peer, peak_mib
from shapes import PROJECTIONS, Shape, make_model, make_rows

from tinker_utils.local import WEIGHTED_LOGPROBS, lora_user_metadata, start_local_service

SHAPES = {
    "vocabulary 4,096": (Shape(), 8),
    "vocabulary 151,936": (Shape(vocabulary=151_936), 2),
    "batch 16": (Shape(batch=16), 2),
    "rows of 32 to 1,024": (Shape(shortest=32, longest=1024), 4),
    "prompts ten times the answers": (Shape(answer=1 / 11), 8),
    "answers ten times the prompts": (Shape(answer=10 / 11), 8),
}
Rows = list[tuple[list[int], int]]
"""Tokens, and how many of them are the prompt."""

QUEUED = 3
"""Steps submitted ahead: what the training loop does."""

NOTE = """\
Completion tokens a second, medians of alternating rounds on the same rows: a Qwen3-shaped model (hidden 256, 4 layers),
LoRA r = 16 on all seven projections, dropout 0.05, batch 4, float32, answers a third of 128 to 384 tokens, unless the
first column says otherwise. *service* is `forward_backward` and `optim_step` through the SDK and the embedded server,
*engine* the same without both. *evaluation* is `forward` on the same rows, beside *service*. All three ask for
log-probabilities where weights are not 0, as the training loop does; *every position* is what any other program gets,
who has them everywhere: its training and its evaluation, beside those. Memory is the highest of TRL's process and of
the server's. Before timing, all sides' losses of the first batch agree to 1e-4."""


class Trainee:
    """A model on an embedded server, trained and evaluated through the SDK."""

    def __init__(
        self, service: tinker.ServiceClient, model: str, shape: Shape, dropout: float, wishes: Mapping[str, str]
    ) -> None:
        self._types = tinker.types
        self._client = service.create_lora_training_client(
            model,
            rank=shape.rank,
            train_unembed=False,
            seed=1,
            user_metadata={**lora_user_metadata(shape.alpha, dropout, PROJECTIONS), **wishes},
        ).result()

    def datum(self, tokens: list[int], prompt: int, count: int) -> object:
        """One row, its weights divided by the batch's completion tokens."""
        weights = (np.arange(1, len(tokens)) >= prompt).astype(np.float32) / count
        return self._types.Datum(
            model_input=self._types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={"target_tokens": np.array(tokens[1:]), "weights": weights},
        )

    def batches(self, rows: Rows, size: int) -> list[list[object]]:
        """The rows as requests."""
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        counts = [sum(len(tokens) - prompt for tokens, prompt in group) for group in groups]
        return [[self.datum(*row, count) for row in group] for group, count in zip(groups, counts, strict=True)]

    def train(self, batches: list[list[object]]) -> list[float]:
        """The losses of one step for each batch, a few submitted ahead."""
        params = self._types.AdamParams(learning_rate=1e-4)

        def submit(batch: list[object]) -> list[object]:
            return [self._client.forward_backward(batch, "cross_entropy"), self._client.optim_step(params)]

        return self._drain(submit, batches)

    def evaluate(self, batches: list[list[object]]) -> list[float]:
        """The losses of each batch, without a step."""
        return self._drain(lambda batch: [self._client.forward(batch, "cross_entropy")], batches)

    def _drain(self, submit: Callable[[list[object]], list[object]], batches: list[list[object]]) -> list[float]:
        losses, waiting = [], []
        for batch in [*batches, *[None] * QUEUED]:
            if batch is not None:
                waiting.append(submit(batch))
            if waiting and (batch is None or len(waiting) > QUEUED):
                results = [future.result() for future in waiting.pop(0)]
                losses.append(results[0].metrics["loss:sum"])
        return losses


@contextlib.contextmanager
def contestants(
    model: Path, shape: Shape, rows: Rows, steps: int, dropout: float
) -> Iterator[tuple[Peer, Peer, Trainee, Trainee, int]]:
    """TRL, the engine, the service and another client of it, each with the same rows; and the server's process id."""
    file = model / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    arguments = (str(model), shape.to_json(), str(file), str(steps), str(dropout), "cpu")
    with (
        Peer(BENCH_PYTHON, "peer_trl.py", *arguments) as trl,
        Peer(sys.executable, "peer_engine.py", *arguments) as engine,
        start_local_service(str(model), model / "store", threads=threads()) as server,
        tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key) as client,
    ):
        service, other = (Trainee(client, str(model), shape, dropout, wishes) for wishes in (WEIGHTED_LOGPROBS, {}))
        yield trl, engine, service, other, server.process.pid


def threads() -> int | None:
    """The same number for everybody."""
    return int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ else None


def check_losses(model: Path, shape: Shape, rows: Rows) -> None:
    """End the program unless all compute the same loss of the first batch, without dropout."""
    with contestants(model, shape, rows[: shape.batch], 1, 0.0) as (trl, engine, service, other, _):
        losses = [
            trl.round()["first_loss"],
            engine.round()["first_loss"],
            *(each.train(each.batches(rows[: shape.batch], shape.batch))[0] for each in (service, other)),
        ]
    say("losses of the first batch: TRL {:.6f}, engine {:.6f}, service {:.6f} and {:.6f}".format(*losses))
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise SystemExit(f"TRL, engine and service do not compute the same loss: {losses}")


def measure(name: str, shape: Shape, steps: int, rounds: int) -> list[object]:
    """One row of the table."""
    say(f"{name}: {shape}")
    with tempfile.TemporaryDirectory() as directory:
        model = make_model(shape, Path(directory) / "model")
        rows = make_rows(shape, steps * shape.batch)
        tokens = sum(len(row) - prompt for row, prompt in rows)
        check_losses(model, shape, rows)
        with contestants(model, shape, rows, steps, shape.dropout) as (trl, engine, service, other, server):
            batches = service.batches(rows, shape.batch)
            memory = {}

            def peer_round(peer: Peer) -> float:
                answer = peer.round()
                memory[peer] = answer["peak_mib"]
                return tokens / answer["seconds"]

            def timed(work: Callable[[list], object]) -> float:
                began = time.perf_counter()
                work(batches)
                return tokens / (time.perf_counter() - began)

            runs = {
                "TRL": lambda: peer_round(trl),
                "engine": lambda: peer_round(engine),
                "service": lambda: timed(service.train),
                "evaluation": lambda: timed(service.evaluate),
                "every position": lambda: timed(other.train),
                "every position, evaluation": lambda: timed(other.evaluate),
            }
            for run in runs.values():
                run()
            speed = medians(alternate(runs, rounds))
            return [
                name,
                speed["TRL"],
                speed["service"],
                f"{speed['service'] / speed['TRL']:.2f}x",
                speed["engine"],
                f"{speed['engine'] / speed['service'] - 1:.0%}",
                f"{speed['evaluation'] / speed['service']:.2f}x",
                f"{speed['every position'] / speed['service']:.2f}x / "
                f"{speed['every position, evaluation'] / speed['evaluation']:.2f}x",
                f"{memory[trl]:,.0f} / {peak_mib(server):,.0f}",
            ]


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SHAPES, action="append", help="only these shapes")
    options = parser.parse_args()
    rows = [measure(name, *SHAPES[name], options.rounds) for name in options.only or SHAPES]
    header = ["", "TRL", "service", "service / TRL", "engine", "overhead", "evaluation", "every position"]
    header.append("MiB, TRL / service")
    print(f"## The embedded engine beside TRL\n\n{NOTE}\n\n{table(header, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
