"""The renderer that the settings name: a chat template, or a renderer of the tinker-cookbook."""

from __future__ import annotations

import datetime
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tinker_utils.basics.files import read_bounded
from tinker_utils.basics.redaction import first_line, quoted
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.loss_mask import Encoded
from tinker_utils.data.rendering import Rendered, RenderedSet, Renderer
from tinker_utils.data.sandbox import has_powers
from tinker_utils.data.template import ChatTemplate
from tinker_utils.data.template_renderer import TemplateRenderer
from tinker_utils.errors import ConfigError, RenderingError

_MAX_TEMPLATE = 1 << 20
_RENDERER = "renderer:"
# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024


def renderer_for(
    config: TrainingConfig, tokenizer: Any, date: datetime.date | None = None, as_before: bool = False
) -> Renderer:
    """Return what renders conversations under these settings.

    Args:
        config: the settings.
        tokenizer: the model's.
        date: the day that a template which writes today's date is told; today's by default.
        as_before: see `Renderer`.

    Raises:
        ConfigError: the template or its arguments cannot be used.
    """
    name, arguments = config.template, config.template_arguments
    if name.startswith(_RENDERER):
        if arguments or config.escape_special:
            raise ConfigError(
                f"data.template: {name} takes no template_arguments and no escape_special; remove them, or choose "
                "another renderer."
            )
        return CookbookRenderer(name.removeprefix(_RENDERER), tokenizer, config.train_on)
    text = None if name == "auto" else _read(config)
    own = getattr(tokenizer, "chat_template", None)
    if text is None and not own:
        raise ConfigError(
            f"data.template: {config.model} has no chat template of its own; name a file that holds one, or "
            "renderer:NAME."
        )
    if has_powers(text or str(own)):
        raise ConfigError("data.template: the chat template uses `**`; use another.")
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages", "strftime_now"}
    if reserved := sorted(taken & set(arguments)):
        raise ConfigError(f"data.template_arguments: {quoted(reserved[0])} is set by the project itself; remove it.")
    date = date or datetime.date.today()
    return TemplateRenderer(
        ChatTemplate(tokenizer, text, arguments, date, config.escape_special), config.train_on, as_before
    )


def _read(config: TrainingConfig) -> str:
    path = config.resolve(Path(config.template))
    try:
        return read_bounded(path, _MAX_TEMPLATE).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.template: {path} cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8 text'}); "
            "expected auto, a file that holds a chat template, or renderer:NAME."
        ) from error


def as_renderer(renderer: Any, train_on: str = "last_assistant") -> Renderer:
    """Return a renderer: itself, or that of a tokenizer's own chat template."""
    return renderer if isinstance(renderer, Renderer) else TemplateRenderer(ChatTemplate(renderer), train_on)


def render(
    conversations: Sequence[Conversation], tokenizer: Any, max_seq_length: int, train_on: str = "last_assistant"
) -> RenderedSet:
    """Render conversations, cut each to `max_seq_length` tokens, and skip those without a completion token.

    Args:
        conversations: what to render.
        tokenizer: the model's, or a `Renderer`, which knows by itself what to train on.
        max_seq_length: the length limit in tokens.
        train_on: which messages are trained on.

    Raises:
        RenderingError: the template gives no prefix for a trained message, or refuses a conversation.
    """
    renderer = as_renderer(tokenizer, train_on)
    rendered = [
        each
        for start in range(0, len(conversations), _ENCODE_TOGETHER)
        for each in renderer.encode(conversations[start : start + _ENCODE_TOGETHER])
    ]
    for each in rendered:
        if each.problem:
            raise RenderingError(each.problem)
    examples = [each.examples(max_seq_length) for each in rendered]
    cut = sum(len(encoded.tokens) > max_seq_length for each in rendered for encoded in each.encoded)
    unanswered = sum(not each.encoded for each in rendered)
    return RenderedSet.of(examples, cut=cut, skipped=examples.count(()) - unanswered, unanswered=unanswered)


def prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the tokens after which the model is to answer `messages`; the tokenizer may be a `Renderer`."""
    return as_renderer(tokenizer).prompt(messages)


def prompts_of(conversations: Sequence[Conversation], tokenizer: Any) -> list[list[int]]:
    """Return the prompt tokens of each conversation: all before its last assistant message, or all that it has."""
    renderer = as_renderer(tokenizer)
    return [renderer.prompt(c.messages[: c.last_assistant()], c.tools) for c in conversations]


class CookbookRenderer(Renderer):
    """Renders by a renderer of the tinker-cookbook, where that package is installed.

    Args:
        name: the renderer's name there.
        tokenizer: the model's.
        train_on: see `Renderer`.

    Raises:
        ConfigError: the package is not installed, or has no such renderer.
    """

    def __init__(self, name: str, tokenizer: Any, train_on: str = "last_assistant") -> None:
        super().__init__(tokenizer, train_on)
        try:
            renderers: Any = import_module("tinker_cookbook.renderers")
        except ImportError as error:
            raise ConfigError(
                f"data.template: {_RENDERER}{name} needs the package tinker-cookbook ({first_line(str(error))}); "
                "install it, or choose another template."
            ) from error
        try:
            self._renderer: Any = renderers.get_renderer(name, tokenizer)
        except Exception as error:  # of a package that raises what it likes
            raise ConfigError(
                f"data.template: the tinker-cookbook cannot make its renderer {quoted(name)} "
                f"({first_line(str(error))}); choose another."
            ) from error
        self._package = renderers
        self._name = name

    def encode_chats(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode conversations as `Renderer.encode` says, one by one."""
        return [self._rendered(conversation) for conversation in conversations]

    def prompt(self, messages: Sequence[Message], tools: tuple[Any, ...] = ()) -> list[int]:
        """Return the prompt's tokens as `Renderer.prompt` says."""
        with self._refusing(f"{len(messages)} messages"):
            return list(self._renderer.build_generation_prompt(self._given(messages, tools)).to_ints())

    @property
    def identity(self) -> dict[str, str]:
        """Return what decides the tokens, as `Renderer.identity` says."""
        return {"chat template": f"{_RENDERER}{self._name} of tinker-cookbook {version('tinker-cookbook')}"}

    @property
    def stops(self) -> list[int]:
        """Return the tokens that the renderer stops at; one that is a text of several tokens is none."""
        stops = self._renderer.get_stop_sequences()
        tokens = [[stop] if isinstance(stop, int) else self.tokenizer.encode(stop) for stop in stops]
        return [each[0] for each in tokens if len(each) == 1]

    def _rendered(self, conversation: Conversation) -> Rendered:
        try:
            with warnings.catch_warnings(record=True) as told:
                apart = [self._answer(conversation, index) for index in self.answers(conversation)]
        except RenderingError as error:
            return Rendered(problem=f"{conversation.source}: {error}")
        if not apart:
            return Rendered()
        signs = {f"warned: {first_line(str(each.message))}" for each in told}
        if not all(self._is_ended(each.tokens.tolist()) for each in apart):
            signs.add("unended")
        whole = apart[-1].tokens
        if any(not np.array_equal(whole[: len(each.tokens)], each.tokens) for each in apart):
            return Rendered(tuple(apart), signs=frozenset(signs))
        mask = np.zeros(len(whole), np.bool_)
        for each in apart:
            mask[: len(each.tokens)] |= each.completion
        return Rendered((Encoded(whole, mask),), signs=frozenset(signs))

    def _is_ended(self, tokens: list[int]) -> bool:
        """Return whether an answer ends as the model is to end it when it is sampled."""
        stops = self._renderer.get_stop_sequences()
        text = self.tokenizer.decode(tokens[-16:])
        return any(tokens[-1] == stop if isinstance(stop, int) else text.endswith(stop) for stop in stops)

    def _answer(self, conversation: Conversation, index: int) -> Encoded:
        """Return the example of one answer, up to its last token in the loss."""
        prompt = self.prompt(conversation.messages[:index], conversation.tools)
        messages = self._given(conversation.messages[: index + 1], conversation.tools)
        with self._refusing(f"message {index + 1}"):
            last = self._package.TrainOnWhat.LAST_ASSISTANT_MESSAGE
            made, weights = self._renderer.build_supervised_example(messages, train_on_what=last)
            tokens, mask = np.array(made.to_ints(), np.int32), np.array([weight > 0 for weight in weights])
        if tokens[: len(prompt)].tolist() != prompt:
            raise RenderingError(
                f"the renderer {self._name} does not begin the tokens of message {index + 1} with its prompt; use "
                "another template (data.template)."
            )
        mask[: len(prompt)] = False
        length = len(mask) - int(np.argmax(mask[::-1])) if mask.any() else len(mask)
        return Encoded(tokens[:length], mask[:length])

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a package that raises what it likes
            raise RenderingError(
                f"the renderer {self._name} refused {what} ({first_line(str(error))}); correct the conversation, or "
                "use another template (data.template)."
            ) from error

    def _given(self, messages: Sequence[Message], tools: tuple[Any, ...]) -> list[Any]:
        """Return messages as the cookbook's own."""
        given = list(map(self._message, messages))
        if not tools:
            return given
        system = given.pop(0)["content"] if given and given[0]["role"] == "system" else ""
        specs = [tool.get("function", tool) for tool in tools]
        return [*self._renderer.create_conversation_prefix_with_tools(specs, system), *given]

    def _message(self, message: Message) -> Mapping[str, Any]:
        given = {key: value for key, value in message.items() if key not in ("tool_calls", "reasoning_content")}
        if reasoning := message.get("reasoning_content"):
            thought = {"type": "thinking", "thinking": reasoning}
            given["content"] = [thought, {"type": "text", "text": message["content"]}]
        if calls := message.get("tool_calls"):
            given["tool_calls"] = list(map(self._call, calls))
        return given

    def _call(self, call: Mapping[str, Any]) -> Any:
        function = call.get("function", call)
        arguments = function.get("arguments", "{}")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        body = self._package.ToolCall.FunctionBody(name=function["name"], arguments=text)
        return self._package.ToolCall(id=call.get("id"), function=body)
