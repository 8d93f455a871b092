"""Models with random weights and rows of random tokens: what the benchmarks train."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENIZER = Path(__file__).parents[1] / "tinker_utils" / "local" / "base_model"


@dataclass(frozen=True)
class Shape:
    """A model and its batches.

    Attributes:
        shortest, longest: tokens of a row, uniformly distributed.
        answer: the fraction of a row's tokens, its last ones, that the loss is taken over.
    """

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    intermediate: int = 768
    heads: int = 8
    groups: int = 4
    head_dim: int = 32
    batch: int = 4
    shortest: int = 128
    longest: int = 384
    answer: float = 1 / 3
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    dtype: str = "float32"

    def to_json(self) -> str:
        """For another process's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


def make_model(shape: Shape, directory: Path) -> Path:
    """A Qwen3 model of this shape with seeded random weights, in transformers' format, with a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype=shape.dtype,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype)).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, directory)
    return directory


def make_rows(shape: Shape, count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """Rows of random tokens, each with the number of tokens of its prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(shape.shortest, shape.longest + 1, count):
        prompt = min(int(length) - 1, max(1, round(int(length) * (1 - shape.answer))))
        rows.append((rng.integers(0, shape.vocabulary, length).tolist(), prompt))
    return rows
