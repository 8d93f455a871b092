"""The embedded service on cores that others keep busy: what samples, steps and training keep of their idle speed."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tinker
from engine import SHAPES, Trainee
from measure import alternate, medians, say, table
from peer import BENCH_PYTHON, Peer
from shapes import Shape, make_model, make_rows

from tinker_utils.local import WEIGHTED_LOGPROBS, start_local_service
from tinker_utils.local.server.model_source import PACKAGED_NAME

NEIGHBOURS = {"loop": "while True: pass", "memory": "while True: list(range(10**6))"}
"""What the two neighbours do: one computes, the other also fills memory."""

TRAINED = ("vocabulary 4,096", "batch 16", "answers ten times the prompts")

NOTE = """\
Beside two processes that do nothing but `{code}`, in turns with none beside it: {rounds} repetitions each, on this
machine's cores, with as many threads as each side takes by itself. *times* is the median beside them over the median
without, *worst* the slowest of them over the same."""

TRAINING_NOTE = """\
Training of the engine's benchmark, beside the same two processes: what each side keeps of its speed without them."""


@contextlib.contextmanager
def neighbours(code: str) -> Iterator[None]:
    """Two busy processes, for as long as the block lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        time.sleep(0.3)  # until they are at it
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(work: Callable[[], object]) -> float:
    """How long it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def both_ways(work: dict[str, Callable[[], float]], code: str, rounds: int) -> dict[str, list[float]]:
    """What each measured without neighbours, and, as `NAME, busy`, beside them."""

    def beside(measured: Callable[[], float]) -> float:
        with neighbours(code):
            return measured()

    for measured in work.values():
        measured()
    busy = {f"{name}, busy": lambda each=each: beside(each) for name, each in work.items()}
    return alternate({**work, **busy}, rounds)


def small_work(code: str, rounds: int) -> list[list[object]]:
    """Rows of the first table: samples and steps of the packaged model."""
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory() as store,
        start_local_service(PACKAGED_NAME, store) as server,
        tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key) as client,
    ):
        sampler = client.create_sampling_client(base_model=PACKAGED_NAME).result()
        params = tinker.SamplingParams(max_tokens=12, temperature=0, stop=[])
        prompts = [tinker.ModelInput.from_ints(rng.integers(3, 500, 30).tolist()) for _ in range(3)]
        trainee = Trainee(client, PACKAGED_NAME, Shape(), 0.05, WEIGHTED_LOGPROBS)
        batches = trainee.batches(make_rows(Shape(vocabulary=500, shortest=40, longest=120), 4), 4)

        def sample() -> None:
            for future in [sampler.sample(prompt, 1, params) for prompt in prompts]:
                future.result()

        work = {
            "three samples of 12 tokens": lambda: seconds(sample),
            "a step on four chats": lambda: seconds(lambda: trainee.train(batches)),
        }
        measured = both_ways(work, code, rounds)
    rows: list[list[object]] = []
    for name in work:
        idle, busy = statistics.median(measured[name]), measured[f"{name}, busy"]
        middle = statistics.median(busy)
        rows.append([name, 1000 * idle, 1000 * middle, f"{middle / idle:.1f}x", f"{max(busy) / idle:.1f}x"])
    return rows


def training(name: str, code: str, rounds: int) -> list[object]:
    """One row of the second table."""
    shape, steps = SHAPES[name]
    with tempfile.TemporaryDirectory() as directory:
        model = make_model(shape, Path(directory) / "model")
        rows = make_rows(shape, steps * shape.batch)
        file = model / "rows.json"
        file.write_text(json.dumps(rows), encoding="utf-8")
        arguments = (str(model), shape.to_json(), str(file), str(steps), str(shape.dropout), "cpu")
        with (
            Peer(BENCH_PYTHON, "peer_trl.py", *arguments) as trl,
            start_local_service(str(model), model / "store") as server,
            tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key) as client,
        ):
            trainee = Trainee(client, str(model), shape, shape.dropout, WEIGHTED_LOGPROBS)
            batches = trainee.batches(rows, shape.batch)
            work = {
                "TRL": lambda: float(trl.round()["seconds"]),
                "service": lambda: seconds(lambda: trainee.train(batches)),
            }
            found = medians(both_ways(work, code, rounds))
    kept = {who: found[who] / found[f"{who}, busy"] for who in work}
    faster = [found[f"TRL{how}"] / found[f"service{how}"] for how in ("", ", busy")]
    return [name, f"{kept['TRL']:.0%}", f"{kept['service']:.0%}", *(f"{ratio:.2f}x" for ratio in faster)]


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="repetitions of samples and steps")
    parser.add_argument("--training-rounds", type=int, default=3)
    parser.add_argument("--neighbours", choices=NEIGHBOURS, default="loop")
    parser.add_argument("--only", choices=TRAINED, action="append", help="train only these shapes")
    options = parser.parse_args()
    code = NEIGHBOURS[options.neighbours]
    say("samples and steps")
    small = table(["", "idle, ms", "busy, ms", "times", "worst"], small_work(code, options.rounds))
    rows = [training(name, code, options.training_rounds) for name in options.only or TRAINED]
    header = ["", "TRL keeps", "the service keeps", "service / TRL, idle", "service / TRL, busy"]
    note = NOTE.format(code=code, rounds=options.rounds)
    print(f"## Shared cores\n\n{note}\n\n{small}\n\n{TRAINING_NOTE}\n\n{table(header, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
