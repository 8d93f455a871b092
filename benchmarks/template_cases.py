"""Conversations, families of models and tokenizers on which renderings are compared by templates.py."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
PACKAGED = ROOT / "tinker_utils" / "local" / "base_model"
SAMPLE = ROOT / "data" / "sample" / "train.jsonl"

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Shape:
    """A conversation, and a word of each part of it that a template may leave out."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    words: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> dict[str, Any]:
        """Return it as a line of a chat file."""
        return {"messages": self.messages} | ({"tools": self.tools} if self.tools else {})

    @property
    def answers(self) -> list[int]:
        """Return the indices of the assistant messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]


def _turn(question: str, answer: str, **more: Any) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


_FUNCTION = {
    "name": "get_weather",
    "description": "Tells how cold it is.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where?"}},
        "required": ["city"],
    },
}
# As OpenAI's interface writes it: content is null beside a call, and its arguments are JSON text.
_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
SHAPES = {
    "single turn": Shape(_turn("Hi.", "Hello."), words={"content": "Hello"}),
    "two turns": Shape(_turn("Hi.", "Hello.") + _turn("Why?", "Because."), words={"content": "Because"}),
    "system": Shape(
        [{"role": "system", "content": "Be brief."}, *_turn("Hi.", "Hello.")],
        words={"content": "Hello", "system": "brief"},
    ),
    "tools": Shape(
        [
            {"role": "user", "content": "Warm?"},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "content": "snow", "name": "get_weather", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "No."},
        ],
        [{"type": "function", "function": _FUNCTION}],
        {"content": "No.", "tools": "how cold", "tool_calls": "Oslo", "tool results": "snow"},
    ),
    "reasoning": Shape(
        _turn("Hi.", "Hello.", reasoning_content="A greeting.") + _turn("2+2?", "Four.", reasoning_content="A sum."),
        words={"content": "Four", "reasoning": "sum"},
    ),
    "newlines": Shape(
        _turn("\n\nHi.\n\n", "\n\nHello.\n\n") + _turn("\n\nWhy?\n\n", "\n\nBecause.\n\n"), words={"content": "Because"}
    ),
}


class Family(NamedTuple):
    """What a template takes from its tokenizer, and how its models end an answer.

    Attributes:
        bos, eos: the tokenizer's own tokens.
        ends: what ends an answer, one of these, where the template writes it behind the answer.
        begins_next: what ends an answer, and one with tool calls, where it is the next message that begins so.
        closing: what ends reasoning that the prompt has opened; empty where the template, which then opens the model's
            turn once more, leaves no way on.
    """

    bos: str = "<|startoftext|>"
    eos: str = "<|im_end|>"
    ends: tuple[str, ...] = ("<|im_end|>",)
    begins_next: tuple[str, str] = ("", "")
    closing: str = "\n</think>\n\n"


# By the beginning of a template's name, the longest that fits. Written down from the families' published tokenizers
# and generation settings, and so known without the code that is tested.
FAMILIES = {
    "": Family(),
    "cohere": Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",)),
    "deepseek": Family("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",)),
    "diffusion_gemma": Family("<bos>", "<eos>", ("<turn|>", "<|tool_response>"), closing=""),
    "gemma": Family("<bos>", "<eos>", ("<end_of_turn>",)),
    "gemma4": Family("<bos>", "<eos>", ("<turn|>", "<|tool_response>"), closing="\n<channel|>"),
    "glm": Family("[gMASK]", "<|endoftext|>", (), ("<|user|>", "<|observation|>")),
    "gptoss": Family("<|startoftext|>", "<|return|>", ("<|return|>", "<|call|>")),
    "idefics": Family("<|begin_of_text|>", "<end_of_utterance>", ("<end_of_utterance>",)),
    "llama3": Family("<|begin_of_text|>", "<|eot_id|>", ("<|eot_id|>",)),
    "llava": Family("<s>", "</s>", ("</s>",)),
    "muse": Family("<|begin_of_text|>", "<|eot|>", ("<|eot|>",)),
    "phi3": Family("<s>", "<|endoftext|>", ("<|end|>",)),
    "smolvlm": Family("<|im_start|>", "<end_of_utterance>", ("<end_of_utterance>",)),
}


def family_of(template: str) -> Family:
    """Return the family of the template with this name."""
    return FAMILIES[max((prefix for prefix in FAMILIES if template.startswith(prefix)), key=len)]


_CONTROL = re.compile(
    r"<\|[^|<>\s{}]+\|>|<｜[^｜]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_(?:turn|utterance)>|</?s>|<[be]os>"
    r"|\[/?INST\]|\[gMASK\]|<sop>|<BOS_TOKEN>|<\|\"\|>"
)
# Models write these themselves: tokens, but none that a decoder leaves out.
_WRITTEN = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")


def tokenizers_with(texts: Iterable[str], family: Family) -> dict[str, Any]:
    """Return two tokenizers, by name, that know the family's tokens and those that stand in the texts."""
    text = " ".join([*texts, family.bos, family.eos, *family.ends, *family.begins_next])
    tokens = [AddedToken(each, special=True, normalized=False) for each in sorted(set(_CONTROL.findall(text)))]
    tokens += [AddedToken(each, special=False, normalized=False) for each in sorted(set(_WRITTEN.findall(text)))]
    made = {"packaged": AutoTokenizer.from_pretrained(PACKAGED), "merging": _merging()}
    for tokenizer in made.values():
        tokenizer.add_tokens(tokens)
        tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    return made


def _merging() -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(_merging_as_json()))


@functools.cache
def _merging_as_json() -> str:
    """Return a tokenizer that cuts nothing before it merges: newlines join with each other, and with what follows."""
    rows = [json.loads(line)["messages"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    said = [message["content"] for messages in rows for message in messages]
    shaped = [message["content"] for shape in SHAPES.values() for message in shape.messages if message["content"]]
    # What stands between two control tokens: a role, or a newline, and what was said.
    pieces = [before + text for before in ("user\n", "assistant\n", "model\n", "\n", "\n\n") for text in shaped * 20]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(pieces + said, trainer)
    return str(tokenizer.to_str())
