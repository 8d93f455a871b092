"""Training on one GPU beside TRL: tokens a second, MFU and peak memory. Not part of `make bench`.

make bench-gpu                        # Qwen3-0.6B- and 8B-shaped models with random weights
make bench-gpu GPU_OPTIONS=--dry-run  # tiny shapes on the CPU: does it work at all?
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from measure import alternate, medians, say, table
from peer import BENCH_PYTHON, Peer
from shapes import Shape, make_model, make_rows

# The sizes of Qwen3-0.6B and Qwen3-8B. Embeddings are tied in both, so that the larger one fits beside TRL's.
GPU = Shape(dtype="bfloat16", vocabulary=151_936, groups=8, head_dim=128, shortest=2048, longest=2048)
SHAPES = {
    "Qwen3-0.6B": replace(GPU, hidden=1024, layers=28, intermediate=3072, heads=16),
    "Qwen3-8B": replace(GPU, hidden=4096, layers=36, intermediate=12_288, heads=32),
}
PEAK_FLOPS = 989e12
"""Dense bfloat16 operations a second of an H100 or H200 (SXM), by its data sheet."""

NOTE = """\
Tokens a second (prompts and answers), medians of alternating rounds: bfloat16, LoRA r = 16 on all seven projections,
rows of 2,048 tokens, answers a third. MFU counts 4 operations a parameter and token (forward, and backward to the
inputs: frozen weights have no gradient) and those of causal attention, of 989 TFLOPS. Both sides call their engine
directly."""


def flops(shape: Shape) -> float:
    """Operations a token that training cannot do without."""
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.groups)
    layer = attention + 3 * shape.hidden * shape.intermediate
    # Scores and values, each 2 operations, over half of the positions; backward twice that.
    scores = 3 * 2 * 2 * shape.heads * shape.head_dim * shape.longest / 2
    return 4 * (shape.layers * layer + shape.answer * shape.vocabulary * shape.hidden) + shape.layers * scores


def measure(name: str, shape: Shape, device: str, steps: int, rounds: int) -> list[list[object]]:
    """Two rows of the table: TRL's, and this project's."""
    say(f"{name}: {shape}")
    with tempfile.TemporaryDirectory() as directory:
        model = make_model(shape, Path(directory) / "model")
        rows = make_rows(shape, steps * shape.batch)
        tokens = sum(len(row) for row, _ in rows)
        (model / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        arguments = (str(model), shape.to_json(), str(model / "rows.json"), str(steps), str(shape.dropout), device)
        with (
            Peer(BENCH_PYTHON, "peer_trl.py", *arguments) as trl,
            Peer(sys.executable, "peer_engine.py", *arguments) as engine,
        ):
            memory = {}

            def speed(peer: Peer) -> float:
                answer = peer.round()
                memory[peer] = answer["gpu_mib"] or answer["peak_mib"]
                return tokens / answer["seconds"]

            contestants = {"TRL": lambda: speed(trl), "tinker_utils": lambda: speed(engine)}
            for contestant in contestants.values():
                contestant()
            found = medians(alternate(contestants, rounds))
    return [
        [
            name,
            who,
            found[who],
            f"{found[who] * flops(shape) / PEAK_FLOPS:.1%}",
            f"{found[who] / found['TRL']:.2f}x",
            mib,
        ]
        for who, mib in (("TRL", memory[trl]), ("tinker_utils", memory[engine]))
    ]


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps a round")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("PyTorch finds no GPU here: --dry-run tries the script on the CPU.", file=sys.stderr)
        return 2
    shapes = SHAPES
    if options.dry_run:
        tiny = {"hidden": 64, "layers": 2, "intermediate": 96, "vocabulary": 1024, "shortest": 64, "longest": 64}
        shapes = {f"{name}, dry run": replace(shape, **tiny) for name, shape in SHAPES.items()}
    device = "cpu" if options.dry_run else "cuda"
    rows = [
        row for name, shape in shapes.items() for row in measure(name, shape, device, options.steps, options.rounds)
    ]
    header = ["", "", "tokens a second", "MFU", "beside TRL", "peak MiB"]
    print(f"## One GPU\n\n{NOTE}\n\n{table(header, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
