"""Finds out what a chat template writes around the contents of messages, found out once for many conversations.

The template is run with stand-ins for the contents. A stand-in can be joined to other text and written out. It answers
some questions for its content, and notes them; any other use of it ends the attempt. So conversations of the same
roles, whose contents give the same answers, have the same text around their contents.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from tinker_utils.data.chat import Message

Apply = Callable[[Sequence[Message], bool], str]  # messages, and whether to prompt for an answer, to text

# Conversations of the same roles before it pays to look, and forms that they may have.
_COMMON, _MAX_FORMS = 3, 4
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_DELIMITER = re.compile(r"\{[{%]|[%}]\}")
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
# What may use a stand-in as ordinary text, or make one of it, unseen: literals are written as 0, any space as a blank.
_UNSEEN = re.compile(
    r"""[~%'"]|\b(?:macro|call|filter|endset|block|include|import|extends|join|format)\b
    |\|[ ]?+(?!(?:trim|length|count|tojson|default|d|items|list|first|last|reverse)\b)
    |\.[ ]?\w+[ ]?\([ ]?+(?![0)])  # a method that is given something but a literal
    |^(?!-?[ ]?for\b).*(?<!\b0)(?<!\b0[ ]not)[ ]in\b(?![ ]?[\[(])  # something but a literal in what may be a text""",
    re.VERBOSE,
)


class Direct(Protocol):
    """A tokenizer's parts, without what is done around them."""

    @property
    def backend(self) -> Any:
        """Return its `tokenizers.Tokenizer`, if that is all that encodes a text; else None."""

    @property
    def template(self) -> str:
        """Return the chat template's source."""

    def render(self, messages: Sequence[Message], prompt: bool) -> str:
        """Run the chat template on these very objects."""


class _Note(NamedTuple):
    """A question that the template asked about the content at a place, and the answer; None is the content itself."""

    place: int
    question: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: bool | None


class _NotFixedError(BaseException):
    """The text around the contents depends on them in a way that is not noted. No test of Jinja's takes it for a no."""


def _refuse(*_: Any, **__: Any) -> Any:
    raise _NotFixedError


class _Joined(str):
    """Text that holds marks: it may be joined to other text, and nothing else."""

    __slots__ = ()

    def __add__(self, other: str) -> _Joined:
        return _Joined(str.__add__(self, other))

    def __radd__(self, other: str) -> _Joined:
        return _Joined(str.__add__(other, self))

    def __str__(self) -> str:
        return self  # and not a copy that is an ordinary text


_OBJECTS_OWN = {*dir(object)} - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__format__"}
for _name in {*dir(str), "__rmod__", "__bool__"} - _OBJECTS_OWN - {"__add__"}:
    setattr(_Joined, _name, _refuse)


class _Content(_Joined):
    """A mark in place of a message's content, which answers for it."""

    __slots__ = ("_content", "_notes", "_place")
    _content: str
    _notes: list[_Note]
    _place: int

    def __new__(cls, mark: str, place: int, content: str, notes: list[_Note]) -> _Content:
        self = super().__new__(cls, mark)
        self._place, self._content, self._notes = place, content, notes
        return self


def _answering(question: Callable[..., Any]) -> Callable[..., Any]:
    def answer(self: _Content, *arguments: Any) -> Any:
        if any(isinstance(argument, _Joined) for argument in arguments):
            raise _NotFixedError
        given = question(self._content, *arguments)
        same = type(given) is str and given == self._content
        if not same and type(given) is not bool:
            raise _NotFixedError
        self._notes.append(_Note(self._place, question, arguments, None if same else given))
        return self if same else given

    return answer


_METHODS = ("startswith", "endswith", "strip", "lstrip", "rstrip", "replace", "__contains__", "__eq__", "__ne__")
for _name, _question in {"__bool__": bool, **{name: getattr(str, name) for name in _METHODS}}.items():
    setattr(_Content, _name, _answering(_question))


@dataclass(frozen=True)
class _Form:
    """A prompt and the same with its answer, as formats that take the contents; and when they are right."""

    prompt: str
    answered: str
    notes: tuple[_Note, ...]

    def texts(self, contents: Sequence[str]) -> tuple[str, str] | None:
        """Return (prompt, with the answer); None where that is not known."""
        for place, question, arguments, answer in self.notes:
            content = contents[place]
            if question(content, *arguments) != (content if answer is None else answer):
                return None
        return self.prompt.format(*contents), self.answered.format(*contents)


class FixedTexts:
    """Texts of conversations, from what the template was seen to write around others of the same roles.

    It is for one batch: what a template writes may depend on the date.

    Args:
        direct: the tokenizer's parts.
        apply: the template as the tokenizer itself applies it: what is found out is compared with that.
    """

    def __init__(self, direct: Direct, apply: Apply) -> None:
        self._direct, self._apply = direct, apply
        self._forms: dict[tuple[str, ...], list[_Form]] = {}
        self._asked: Counter[tuple[str, ...]] = Counter()
        self._usable = _is_seen_through(direct.template)

    def texts(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """Return (prompt, with the answer); None where that is not known."""
        contents = [message["content"] for message in messages]
        if not self._usable or not _are_plain(messages, contents):
            return None
        roles = tuple([message["role"] for message in messages])
        for form in self._forms.get(roles, ()):
            if texts := form.texts(contents):
                return texts
        self._asked[roles] += 1
        if not _COMMON <= self._asked[roles] < _COMMON + _MAX_FORMS:
            return None
        found = self._look(messages)
        if found is None:
            return None
        self._forms.setdefault(roles, []).append(found)
        return found.texts(contents)

    def _look(self, messages: Sequence[Message]) -> _Form | None:
        """Return the form of these messages' texts, if they have one, and it gives what the tokenizer itself gives."""
        try:
            form = _form(self._direct, messages)
            true = self._apply(messages[:-1], True), self._apply(messages, False)
        except (Exception, _NotFixedError):  # where a conversation is refused, the tokenizer itself will say why
            return None
        return form if form.texts([message["content"] for message in messages]) == true else None


@lru_cache(maxsize=16)
def _is_seen_through(template: str) -> bool:
    """Return whether no part of a template's code could use a stand-in without its noticing."""
    template = _COMMENT.sub("", template)
    code = [_LITERAL.sub(" 0 ", each) for each in _CODE.findall(template)]
    unread = _DELIMITER.search(_CODE.sub("", template))  # code that holds what looks like its end
    return not unread and not any(_UNSEEN.search(" ".join(each.split())) for each in code)


def _are_plain(messages: Sequence[Message], contents: Sequence[Any]) -> bool:
    """Return whether all messages have a role and a text, in this order, and nothing else."""
    return set(map(tuple, messages)) == {("role", "content")} and set(map(type, contents)) == {str}


def _form(direct: Direct, messages: Sequence[Message]) -> _Form:
    key, notes = secrets.token_hex(8), list[_Note]()
    # What a template may do to text unseen (strip, escape, change case) does not leave such a mark as it is.
    marks = [f"\n <\"'&É{key}.{place}>\n" for place in range(len(messages))]
    watched = [
        {"role": message["role"], "content": _Content(mark, place, message["content"], notes)}
        for place, (mark, message) in enumerate(zip(marks, messages, strict=True))
    ]
    texts = direct.render(watched[:-1], True), direct.render(watched, False)
    prompt, answered = (_format(text, marks, key) for text in texts)
    return _Form(prompt, answered, tuple(dict.fromkeys(notes)))


def _format(text: str, marks: Sequence[str], key: str) -> str:
    """Return the format that has the contents' places where `text` has their marks."""
    text = text.replace("{", "{{").replace("}", "}}")
    for place, mark in enumerate(marks):
        text = text.replace(mark, f"{{{place}}}")
    if key in text:
        raise _NotFixedError
    return text
