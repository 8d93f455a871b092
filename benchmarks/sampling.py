"""Drawing from the embedded service, prompt by prompt through the SDK, beside transformers' generate on one batch."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tinker
import torch
import transformers
from measure import alternate, medians, table
from shapes import Shape, make_model

from tinker_utils.local import start_local_service

PROMPTS, TOKENS = 16, 64

NOTE = f"""\
Tokens a second, medians of alternating rounds: {PROMPTS} prompts of 20 to 200 tokens, {TOKENS} greedy tokens each,
from a Qwen3-shaped model with random weights (hidden 256, 4 layers, vocabulary 4,096). The service gets {PROMPTS}
requests and also returns log-probabilities; `generate` gets one batch, padded on the left. *one by one* is `generate`
for each prompt."""


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    threads = int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ else None
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 4096, length).tolist() for length in rng.integers(20, 201, PROMPTS)]
    with tempfile.TemporaryDirectory() as directory:
        model_directory = make_model(Shape(), Path(directory) / "model")
        model = transformers.AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
        with (
            start_local_service(str(model_directory), Path(directory) / "store", threads=threads) as server,
            tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key) as client,
        ):
            sampler = client.create_sampling_client(base_model=str(model_directory)).result()
            params = tinker.SamplingParams(max_tokens=TOKENS, temperature=0, stop=[])

            def service() -> list[list[int]]:
                futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params) for prompt in prompts]
                return [list(future.result().sequences[0].tokens) for future in futures]

            def generate(batch: list[list[int]]) -> list[list[int]]:
                width = max(map(len, batch))
                tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
                mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
                drawn = model.generate(
                    tokens, attention_mask=mask, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS
                )
                return drawn[:, width:].tolist()

            agree = np.mean([ours == theirs for ours, theirs in zip(service(), generate(prompts), strict=True)])

            def timed(work: Callable[[], object]) -> float:
                began = time.perf_counter()
                work()
                return PROMPTS * TOKENS / (time.perf_counter() - began)

            speed = medians(
                alternate(
                    {
                        "service": lambda: timed(service),
                        "generate": lambda: timed(lambda: generate(prompts)),
                        "one by one": lambda: timed(lambda: [generate([prompt]) for prompt in prompts]),
                    },
                    options.rounds,
                )
            )
    rows = [[name, speed[name], f"{speed['service'] / speed[name]:.2f}x"] for name in speed]
    print(f"## Sampling\n\n{NOTE}\n\n{table(['', 'tokens a second', 'service is faster by'], rows)}")
    print(f"\n{agree:.0%} of the prompts got the same tokens from both.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
