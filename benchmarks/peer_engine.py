"""The embedded engine called directly: no server, no protocol, no SDK. Arguments as peer_trl.py's."""

from __future__ import annotations

import json
import sys
import time
import warnings
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import peak_mib, serve_rounds
from shapes import PROJECTIONS, Shape

from tinker_utils.local.engine import engine as local_engine
from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.requests import AdamParams
from tinker_utils.local.protocol.tensors import Datum, LossRequest
from tinker_utils.local.server.serve import keep_freed


def batch(rows: list[tuple[list[int], int]]) -> LossRequest:
    """Return what the server would have decoded."""
    count = sum(len(tokens) - prompt for tokens, prompt in rows)
    data = []
    for tokens, prompt in rows:
        weights = (np.arange(1, len(tokens)) >= prompt).astype(np.float32) / count
        targets = np.array(tokens[1:])
        data.append(Datum(np.array(tokens[:-1]), {"target_tokens": targets, "weights": weights}))
    return LossRequest(tuple(data), "cross_entropy", {}, False)


def main(model: str, shape_json: str, rows_file: str, steps: str, dropout: str, device: str) -> None:
    """Train until nobody asks for a further round."""
    warnings.simplefilter("ignore")
    shape = Shape.from_json(shape_json)
    rows = json.loads(Path(rows_file).read_text(encoding="utf-8"))
    batches = cycle([batch(rows[start : start + shape.batch]) for start in range(0, len(rows), shape.batch)])
    keep_freed()  # as the server does
    base = Base(model, device, shape.dtype)
    engine = local_engine.Engine(base)
    modules = tuple(sorted(PROJECTIONS))
    engine.create("m", LoraSpec(model, shape.rank, shape.alpha, float(dropout), modules, 1, True, True, False))
    # Batches are handed over as the server decodes them.
    local_engine.decode_loss_request = lambda decoded: decoded

    def work(command: str) -> dict[str, Any]:
        began, cpu = time.perf_counter(), time.process_time()
        losses = []
        for _ in range(int(steps)):
            losses.append(engine.forward_backward("m", next(batches), sparse=True).loss)
            engine.optim_step("m", AdamParams(learning_rate=1e-4))
        if base.device.type == "cuda":
            torch.cuda.synchronize()
        gpu = torch.cuda.max_memory_allocated() / 2**20 if base.device.type == "cuda" else 0.0
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "first_loss": losses[0], "peak_mib": peak_mib(), "gpu_mib": gpu}

    serve_rounds(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
