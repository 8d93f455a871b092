"""Counts the parameters of a LoRA adapter from the shape of the base model, and says what their number means.

A matrix of `in` by `out` gets two of its own, [rank, in] and [out, rank]: rank · (in + out) parameters. Too many of
them memorize what few examples say; too few cannot hold what many say. The second rule is the tinker-cookbook's
(its LoRA primer): there should be at least as many parameters as completion tokens to be learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tinker_utils.basics.numbers import short
from tinker_utils.basics.redaction import without_home
from tinker_utils.config.rules import ATTENTION_MODULES, MLP_MODULES, UNEMBED_MODULES
from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.data.tokenizers import base_model, model_config

# Decoders whose layers have the seven projections and no other matrices; a mixture of experts has them many times.
_FAMILIES = {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"}
_MOST = 1 << 24  # of anything that is counted; no model comes near it
# A rank above this has room to memorize a data set of this many examples: one of 64 did, with 19,845 examples.
_AMPLE_RANK, _SMALL_DATA, _USUAL_RANK = 32, 100_000, 16


@dataclass(frozen=True)
class ModelShape:
    """The widths of a decoder's matrices: of its hidden states, queries, keys (and values), MLP and vocabulary."""

    layers: int
    hidden: int
    queries: int
    keys: int
    mlp: int
    vocabulary: int

    def per_rank(self, modules: tuple[str, ...]) -> int:
        """Return the parameters of an adapter of rank 1 on these modules, by the names of `lora.target_modules`."""
        outputs = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.queries}
        widths = {**outputs, **dict.fromkeys(MLP_MODULES, self.mlp)}  # each has the hidden states on its other side
        layer = sum(self.hidden + widths[name] for name in modules if name in widths)
        head = self.hidden + self.vocabulary if UNEMBED_MODULES[0] in modules else 0
        return self.layers * layer + head


# Models that are known without a look at the hub: those of prices.yaml.
_KNOWN = {"Qwen/Qwen3-8B": ModelShape(layers=36, hidden=4096, queries=4096, keys=1024, mlp=12288, vocabulary=151936)}


def model_shape(config: TrainingConfig) -> ModelShape | None:
    """Return the shape of the base model; None where it is not known, as of a mixture of experts."""
    known = None if config.service == "local" else _KNOWN.get(base_model(config.model))
    return known or shape_of(model_config(config))


def shape_of(config: Any) -> ModelShape | None:
    """Return the shape that a config.json tells of; None for one of another kind, or that holds anything else."""
    if not isinstance(config, dict) or not _is_dense(config):
        return None
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    layers, hidden, heads, mlp, vocabulary = (_count(config.get(name)) for name in names)
    if not (layers and hidden and heads and mlp and vocabulary):
        return None
    # What is left out or null follows from the others.
    key_heads = _count(config.get("num_key_value_heads") or heads)
    width = _count(config.get("head_dim") or hidden // heads)
    return (
        ModelShape(layers, hidden, heads * width, key_heads * width, mlp, vocabulary) if key_heads and width else None
    )


def _is_dense(config: dict[str, Any]) -> bool:
    family = config.get("model_type")
    return isinstance(family, str) and family in _FAMILIES


def _count(value: object) -> int:
    """Return a number that may be how many there are of something; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST else 0


def trained_modules(config: TrainingConfig) -> tuple[str, ...]:
    """Return which modules are trained: on a service other than `local` all of each group that is named."""
    lora = config.lora
    if config.service == "local":
        return lora.target_modules
    groups = {ATTENTION_MODULES: lora.train_attn, MLP_MODULES: lora.train_mlp, UNEMBED_MODULES: lora.train_unembed}
    return tuple(name for modules, is_trained in groups.items() if is_trained for name in modules)


def parameters(config: TrainingConfig, shape: ModelShape) -> int:
    """Return the parameters of the adapter that these settings ask for."""
    return config.lora.rank * shape.per_rank(trained_modules(config))


def describe_adapter(
    config: TrainingConfig, shape: ModelShape | None, completion_tokens: int, estimated: bool = False
) -> str:
    """Return in a sentence how many parameters there are beside the completion tokens to be learned."""
    rank, tokens = config.lora.rank, f"{'about ' if estimated else ''}{short(completion_tokens)} completion tokens"
    if shape is not None:
        return f"{short(parameters(config, shape))} LoRA parameters (rank {rank}) for {tokens}."
    return (
        f"How many LoRA parameters (rank {rank}) there are for {tokens} is not known: {without_home(config.model)} is "
        "a mixture of experts or of another shape that is not counted, or its config.json is not at hand."
    )


def about_rank(
    config: TrainingConfig, examples: int, completion_tokens: int | None = None, shape: ModelShape | None = None
) -> Iterator[str]:
    """Yield that an adapter is too small to learn its data, or so large that it may memorize them.

    Args:
        config: the settings.
        examples: those of the training data.
        completion_tokens: theirs in one epoch; None where they are not counted.
        shape: the base model's; None where it is not known. Without both, nothing is said of too small a rank.
    """
    rank, enough = config.lora.rank, _USUAL_RANK
    if completion_tokens and shape:
        per_rank = shape.per_rank(trained_modules(config))
        needed = power_of_two(-(-completion_tokens // per_rank))
        enough = max(enough, needed)
        if rank * per_rank < completion_tokens:
            most = int(RULES["lora.rank"].high)
            advice = f"a rank of at least {needed:,} has as many" if needed <= most else f"even {most:,} has fewer"
            yield (
                f"Rank {rank} may be too small to learn all of the data: it has {short(rank * per_rank)} LoRA "
                f"parameters for {short(completion_tokens)} completion tokens; {advice}."
            )
            return
    if rank > max(_AMPLE_RANK, enough) and examples < _SMALL_DATA:
        why = "most tasks" if enough == _USUAL_RANK else f"their {short(completion_tokens or 0)} completion tokens"
        yield f"Rank {rank} has room to memorize {examples:,} examples; {enough} is enough for {why}."


def power_of_two(at_least: int) -> int:
    """Return the least power of two that is not below a number above 0."""
    return 1 << (at_least - 1).bit_length()
