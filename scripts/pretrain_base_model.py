"""Make the embedded base model from nothing: `python scripts/pretrain_base_model.py`.

Trains a byte-level BPE tokenizer and a Qwen3-architecture language model of 0.9 million parameters on the text that
`pretraining_text.py` generates, and writes both to `tinker_utils/local/base_model` in Hugging Face's format. Text,
initial weights and order come from the seed, and torch runs deterministic algorithms on a fixed number of threads: the
same machine and versions make the same bytes. It takes 15 to 25 minutes on one core, and ends at a loss of 0.32.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pretraining_text import sample_conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "tinker_utils" / "local" / "base_model"

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END]
VOCABULARY_SIZE = 1024
CONTEXT_TOKENS = 4096

# Every line break is a token of its own. The template's line break after `assistant` can then never merge with an
# answer that starts with one, so that a prompt's tokens are a prefix of the whole conversation's, whatever the answer.
WORDS = r"\n| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+"

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TOKENIZER_DOCUMENTS = 4_000
BLOCK_TOKENS = 256
BATCH_BLOCKS = 8
PROMPT_WEIGHT = 0.1
MUON_LEARNING_RATE = 0.02
ADAM_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
LOG_INTERVAL_STEPS = 100


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template: any text goes in and comes out unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    contents = (message["content"] for _ in range(TOKENIZER_DOCUMENTS) for message in sample_conversation(rng))
    tokenizer.train_from_iterator([*contents, *["system", "user", "assistant"] * TOKENIZER_DOCUMENTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, small enough to train a LoRA adapter of it on a laptop's CPU."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def weighted_tokens(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> Iterator[tuple[int, float]]:
    """A conversation's tokens and how much each counts: an answer follows from what came before, a prompt hardly."""
    header_tokens = len(tokenizer.encode(f"{IM_START}assistant\n"))
    for message in messages:
        # Special tokens never merge with their neighbours, so messages can be rendered one by one.
        tokens = tokenizer.apply_chat_template([message]).input_ids
        answer_starts = header_tokens if message["role"] == "assistant" else len(tokens)
        for position, token in enumerate(tokens):
            yield token, 1.0 if position >= answer_starts else PROMPT_WEIGHT
    yield tokenizer.pad_token_id, PROMPT_WEIGHT


def sample_block(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[tuple[int, float]]:
    """Weighted tokens of whole conversations up to the block's end. The first one starts where every prompt starts."""
    block: list[tuple[int, float]] = []
    while len(block) < BLOCK_TOKENS:
        block += weighted_tokens(tokenizer, sample_conversation(rng))
    return block[:BLOCK_TOKENS]


def sample_batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and weights, each (blocks, tokens)."""
    blocks = [sample_block(tokenizer, rng) for _ in range(BATCH_BLOCKS)]
    tokens = torch.tensor([[token for token, _ in block] for block in blocks])
    weights = torch.tensor([[weight for _, weight in block] for block in blocks])
    return tokens, weights


def make_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which needs fewer steps than Adam, and Adam for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def pretrain(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int) -> None:
    """Weighted next-token prediction on fresh text at every step."""
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        for optimizer in optimizers
    ]
    started = time.monotonic()
    losses: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        tokens, weights = sample_batch(tokenizer, rng)
        logits = model(input_ids=tokens).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        loss = (nll * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        losses.append(loss.item())
        if step % LOG_INTERVAL_STEPS == 0:
            mean = sum(losses[-LOG_INTERVAL_STEPS:]) / LOG_INTERVAL_STEPS
            print(f"step {step:5d}  loss {mean:.3f}  {time.monotonic() - started:5.0f} s", flush=True)


def main() -> None:
    """Make the tokenizer and the model, and write both."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded base model from nothing.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="directory to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of text, weights and order (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = train_tokenizer(rng)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    pretrain(model, tokenizer, rng, args.steps)

    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]), pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
