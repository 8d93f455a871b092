"""An independent route to what the embedded service computes: plain transformers and peft, one row at a time."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import peft
import tinker
import torch
import transformers
from support.local_service import Running, rest_client
from tinker import types

from tinker_utils.local.engine.head import BLOCK_VOCABULARY

SIZES = {
    "vocab_size": 2 * BLOCK_VOCABULARY + 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}
CONFIGS = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}
"""An architecture that is computed over packed rows, and one that is padded."""


def write_model(family: str, directory: Path) -> Path:
    """Write a small model with random weights, its norms too: with all ones, a norm left out would not be noticed."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](**SIZES))
    for name, parameter in model.named_parameters():
        parameter.data.uniform_(0.5, 1.5) if "norm" in name else parameter.data.mul_(3)
    model.save_pretrained(directory / family)
    return directory / family


def download(running: Running, model: tinker.TrainingClient, name: str, directory: Path) -> Path:
    """Download a model's adapter as it is now."""
    path = model.save_weights_external(name).result().path
    target = directory / name
    target.mkdir()
    for file, url in rest_client(running).get_external_weights_urls(path).result().urls.items():
        with urllib.request.urlopen(url) as response:
            (target / file).write_bytes(response.read())
    return target


def reference_model(base: Path, adapter: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()


def reference_logprobs(model: Any, datum: types.Datum) -> torch.Tensor:
    """[T], from the full logits of one row at a time: no padding, no packing, no slices."""
    tokens = torch.tensor([datum.model_input.to_ints()])
    targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].data)
    return model(input_ids=tokens).logits[0].log_softmax(-1).gather(1, targets[:, None])[:, 0]
