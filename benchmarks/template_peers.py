"""What TRL's training templates and the cookbook's renderers train of a conversation, for templates.py."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from template_cases import Family, Shape
from template_reference import Answer, Reference, answers_in, difference


def trl_templates() -> dict[str, str]:
    """Return the chat templates in TRL's wheel by name, plain and training variants alike; TRL is not imported."""
    folder = Path(str(importlib.metadata.distribution("trl").locate_file("trl/chat_templates")))
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def trl_answers(reference: Reference, template: str) -> list[Answer]:
    """Return the answers that TRL's `assistant_only_loss` trains with this template."""
    encoded = reference.tokenizer.apply_chat_template(
        reference.messages,
        tools=reference.shape.tools,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return answers_in(encoded["input_ids"], [bool(each) for each in encoded["assistant_masks"]])


# Which of TRL's templates a renderer of the cookbook stands for, with which arguments; None where TRL has none.
RENDERERS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3_disable_thinking": ("qwen3", {"enable_thinking": False}),
    "qwen3_instruct": ("qwen3_instruct_2507", {}),
    "qwen3_5": ("qwen3_5_think", {}),
    "qwen3_5_disable_thinking": ("qwen3_5_nothink", {}),
    "qwen3_5_preserve_thinking": ("qwen3_6", {"preserve_thinking": True}),
    "qwen3_8_xhigh_reasoning": ("qwen3_8", {}),
    "qwen3_8_medium_reasoning": ("qwen3_8", {"reasoning_effort": "medium"}),
    "qwen3_8_low_reasoning": ("qwen3_8", {"reasoning_effort": "low"}),
    "qwen3_8_disable_thinking": ("qwen3_8", {"enable_thinking": False}),
    "llama3": ("llama3", {}),
    "deepseekv3": ("deepseekv3", {}),
    "deepseekv3_thinking": ("deepseekv3", {}),
    "deepseekv4_1": (None, {}),
    "deepseekv4_1_low_reasoning": (None, {}),
    "deepseekv4_1_max_reasoning": (None, {}),
    "deepseekv4_1_preserve_thinking": (None, {}),
    "deepseekv4_1_disable_thinking": (None, {}),
    "kimi_k2": (None, {}),
    "kimi_k25": (None, {}),
    "kimi_k25_disable_thinking": (None, {}),
    "kimi_k26": (None, {}),
    "kimi_k26_disable_thinking": (None, {}),
    "kimi_k26_preserve_thinking": (None, {}),
    "gpt_oss_no_sysprompt": ("gptoss", {}),
    "gpt_oss_low_reasoning": ("gptoss", {"reasoning_effort": "low"}),
    "gpt_oss_medium_reasoning": ("gptoss", {}),
    "gpt_oss_high_reasoning": ("gptoss", {"reasoning_effort": "high"}),
    "glm5_3_max_reasoning": (None, {}),
    "glm5_3_high_reasoning": (None, {}),
    "glm5_3_low_reasoning": (None, {}),
    "nemotron3": ("nemotron_3_nano", {}),
    "nemotron3_disable_thinking": ("nemotron_3_nano", {"enable_thinking": False}),
    "nemotron3_low_thinking": ("nemotron_3_super", {"low_effort": True}),
    "nemotron3_preserve_thinking": ("nemotron_3_nano", {"truncate_history_thinking": False}),
    "nemotron3_ultra": ("nemotron_3_ultra", {}),
    "nemotron3_ultra_disable_thinking": ("nemotron_3_ultra", {"enable_thinking": False}),
    "nemotron3_ultra_medium_thinking": ("nemotron_3_ultra", {"medium_effort": True}),
    "nemotron3_ultra_preserve_thinking": ("nemotron_3_ultra", {"truncate_history_thinking": False}),
}
# These hand everything on to the package tml-renderers.
UNTRIED = (
    "kimi_k31_pro_max_reasoning",
    "kimi_k31_pro_high_reasoning",
    "kimi_k31_pro_low_reasoning",
    "kimi_k31_pro_disable_thinking",
    "kimi_k31_pro_no_reasoning_effort",
    "tml_v0",
)


def renderer_sources(name: str) -> str:
    """Return the modules of the cookbook that may render under this name: they name its control tokens."""
    folder = Path(str(importlib.metadata.distribution("tinker-cookbook").locate_file("tinker_cookbook/renderers")))
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{name[:3]}*.py")))


class Made(NamedTuple):
    """What a renderer of the cookbook makes of one message."""

    prompt: list[int]
    answer: Answer


def made_by(name: str, shape: Shape, tokenizer: Any) -> dict[int, Made | None]:
    """Return what a renderer makes of each answer; None where it refuses."""
    made: dict[int, Made | None] = {}
    for index in shape.answers:
        try:
            made[index] = _made(name, shape, index, tokenizer)
        except Exception:  # of a package that raises what it likes
            made[index] = None
    return made


def beside_renderer(
    made: dict[int, Made | None], tokenizer: Any, family: Family | None, shape: Shape, arguments: dict[str, Any]
) -> set[str]:
    """Compare what a renderer makes with the template, or with its own prompt where there is no template."""
    codes: set[str] = set()
    for index, theirs in made.items():
        if theirs is None:
            codes.add("r")
            continue
        wanted: Answer | None = Answer(theirs.prompt, theirs.answer.trained)
        if family:
            try:
                wanted, _ = Reference(tokenizer, family, shape, arguments).answer(index)
            except Exception:
                return {"R"}
        if wanted is None:
            codes.add("k")
            continue
        codes |= {"p"} if theirs.prompt != wanted.prompt else set()
        codes |= difference(wanted, theirs.answer, tokenizer.decode)
    return codes


def _made(name: str, shape: Shape, index: int, tokenizer: Any) -> Made:
    from tinker_cookbook.renderers import TrainOnWhat, get_renderer
    from tinker_cookbook.third_party.openai_compat import openai_messages_to_tinker, openai_tools_to_tinker

    renderer = get_renderer(name, tokenizer)
    messages = openai_messages_to_tinker(shape.messages[: index + 1])
    if shape.tools:
        messages = [*renderer.create_conversation_prefix_with_tools(openai_tools_to_tinker(shape.tools)), *messages]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompt = renderer.build_generation_prompt(messages[:-1]).to_ints()
        example, weights = renderer.build_supervised_example(messages, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    return Made(prompt, answers_in(example.to_ints(), [bool(each) for each in weights.tolist()])[-1])
