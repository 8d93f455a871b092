"""Prompts and masks of every chat template in TRL's wheel, beside transformers, TRL and the cookbook, token by token.

`make templates` writes the tables into docs/templates.md, which explains their codes. Ends with status 1 where what
this project makes is not what the template alone says, or not what the cookbook's renderer of that name makes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import platform
import re
import sys
import warnings
from typing import Any

from measure import say, table
from template_cases import ROOT, SHAPES, Family, Shape, family_of, tokenizers_with
from template_peers import (
    RENDERERS,
    UNTRIED,
    Made,
    beside_renderer,
    made_by,
    renderer_sources,
    trl_answers,
    trl_templates,
)
from template_reference import Answer, Reference, answers_in, difference

PAGE = ROOT / "docs" / "templates.md"
# A table stands behind the comment that names it.
_MARKED = re.compile(r"(<!-- table: (\w+), by `make templates` -->\n)(?:\|.*\n)*")
REFUSED = {"all_assistant": "A", "last_turn": "T", "last_assistant": "L"}
_ARGUMENTS: list[dict[str, Any]] = [{}, {"enable_thinking": False}, {"enable_thinking": True}]


class Ours:
    """What this project makes of conversations: all that is called of it.

    Args:
        tokenizer: the model's, with its chat template.
        arguments: the template's.
        renderer: a renderer of the cookbook to be used in the template's place.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any], renderer: str = "") -> None:
        self.tokenizer, self.arguments, self.renderer = tokenizer, arguments, renderer

    def examples(self, shape: Shape, train_on: str) -> list[list[Answer]]:
        """Return the trained answers of each example that is made of a conversation."""
        from tinker_utils.data.formats import chat_messages

        (rendered,) = self._made(train_on).encode([chat_messages(shape.line, "line 1")])
        if rendered.problem:
            raise ValueError(rendered.problem)
        return [answers_in(each.tokens.tolist(), each.completion.tolist()) for each in rendered.encoded]

    def prompt(self, shape: Shape, index: int) -> list[int]:
        """Return the tokens after which a model is to write message `index`."""
        from tinker_utils.data.formats import chat_messages

        conversation = chat_messages(shape.line, "line 1")
        return list(self._made("all_assistant").prompt(conversation.messages[:index], conversation.tools))

    def _made(self, train_on: str) -> Any:
        from tinker_utils.data.renderers import CookbookRenderer
        from tinker_utils.data.template import ChatTemplate
        from tinker_utils.data.template_renderer import TemplateRenderer

        if self.renderer:
            return CookbookRenderer(self.renderer, self.tokenizer, train_on)
        return TemplateRenderer(ChatTemplate(self.tokenizer, arguments=self.arguments), train_on)


class Cell:
    """What was found in one shape, for each tokenizer: codes, none where all is equal."""

    def __init__(self) -> None:
        self.codes: dict[str, set[str]] = {}

    def __str__(self) -> str:
        """Return the codes with the packaged tokenizer, and in brackets those that only the merging one brings."""
        if not self.codes:
            return ""
        first = self.codes.get("packaged", set())
        more = self.codes.get("merging", set()) - first
        return " ".join([*sorted(first), *([f"({' '.join(sorted(more))})"] if more else [])]) or "="


class Report:
    """The rows of the tables, and what must not be."""

    def __init__(self) -> None:
        self.templates = trl_templates()
        self.rows: dict[str, list[list[Any]]] = {"own": [], "trl": [], "cookbook": []}
        self.faults: list[str] = []

    def template(self, name: str) -> None:
        """Compare one of TRL's templates in all shapes, also with arguments that change what it writes."""
        tokenizers = self._tokenizers(name, family_of(name))
        seen = set()
        for arguments in _ARGUMENTS:
            texts = _two_texts(tokenizers["packaged"], family_of(name), arguments)
            if texts not in seen:
                seen.add(texts)
                self.rows["own"].append([_label(name, arguments), *self._own(name, tokenizers, arguments)])
        training = self.templates.get(f"{name}_training", self.templates[name])
        if re.search(r"{%-?\s*generation", training):
            self.rows["trl"].append([_label(name), *_trl(name, tokenizers, training)])

    def renderer(self, name: str) -> None:
        """Compare one of the cookbook's renderers in all shapes."""
        stands_for, arguments = RENDERERS[name]
        family = family_of(stands_for or name)
        cells = [Cell() for _ in SHAPES]
        by_name = Cell()
        tokenizers = self._tokenizers(stands_for or "", family, renderer_sources(name))
        for kind, tokenizer in tokenizers.items():
            by_name.codes[kind] = set()
            for cell, (shape_name, shape) in zip(cells, SHAPES.items(), strict=True):
                made = made_by(name, shape, tokenizer)
                cell.codes[kind] = beside_renderer(made, tokenizer, family if stands_for else None, shape, arguments)
                ours = Ours(tokenizer, {}, name)
                by_name.codes[kind] |= self._by_name(f"{name}, {shape_name}, {kind}", made, ours, shape)
        self.rows["cookbook"].append([_label(name), _label(stands_for or "", arguments), *cells, by_name])

    def tables(self) -> dict[str, str]:
        """Return the tables by name."""
        packages = ("transformers", "tokenizers", "trl", "tinker-cookbook", "tinker", "tinker-utils")
        versions = [(package, importlib.metadata.version(package)) for package in packages]
        shapes = list(SHAPES)
        return {
            "versions": table(("tried on", f"{datetime.date.today()}, Python {platform.python_version()}"), versions),
            "own": table(["template", *shapes], self.rows["own"]),
            "trl": table(["template", *shapes], self.rows["trl"]),
            "cookbook": table(["renderer", "beside the template", *shapes, "`renderer:NAME`"], self.rows["cookbook"]),
            "untried": table(("renderer", "why"), [(f"`{name}`", "needs tml-renderers") for name in UNTRIED]),
        }

    def _tokenizers(self, name: str, family: Family, more: str = "") -> dict[str, Any]:
        source = self.templates.get(name, "")
        made = tokenizers_with([source, self.templates.get(f"{name}_training", ""), more], family)
        for tokenizer in made.values():
            tokenizer.chat_template = source
        return made

    def _own(self, name: str, tokenizers: dict[str, Any], arguments: dict[str, Any]) -> list[Cell]:
        cells = []
        for shape_name, shape in SHAPES.items():
            cells.append(Cell())
            for kind, tokenizer in tokenizers.items():
                try:
                    reference = Reference(tokenizer, family_of(name), shape, arguments)
                except Exception:  # a template raises what it likes
                    cells[-1].codes[kind] = {"R"}
                    continue
                where = f"{_label(name, arguments)}, {shape_name}, {kind}"
                cells[-1].codes[kind] = self._beside_reference(where, reference)
        return cells

    def _beside_reference(self, where: str, reference: Reference) -> set[str]:
        ours, shape = Ours(reference.tokenizer, reference.arguments), reference.shape
        answers = {index: reference.answer(index) for index in shape.answers}
        codes = {f"-{part}" for part in reference.lost()}.union(*(special for _, special in answers.values()))
        for index, (answer, _) in answers.items():
            if answer and not _equals(answer.prompt, ours, shape, index):
                codes.add("P")
                self.faults.append(f"{where}: the prompt for message {index + 1}")
        for train_on, indices in _trained(shape).items():
            found, problem = _beside_ours(ours, shape, train_on, [answers[index][0] for index in indices])
            codes |= found
            if problem:
                self.faults.append(f"{where}, {train_on}: {problem}")
        return codes

    def _by_name(self, where: str, made: dict[int, Made | None], ours: Ours, shape: Shape) -> set[str]:
        """Compare `renderer:NAME` with the renderer itself; what does not go on from its own prompt is refused."""
        usable = [each for each in made.values() if each and each.answer.prompt[: len(each.prompt)] == each.prompt]
        try:
            examples = ours.examples(shape, "all_assistant")
        except Exception as error:
            if len(usable) < len(made):
                return {"r"}
            self.faults.append(f"renderer:{where}: {error}")
            return {"A"}
        if [answer for example in examples for answer in example] == [each.answer for each in usable]:
            return set()
        self.faults.append(f"renderer:{where}: other tokens")
        return {"!"}


def _two_texts(tokenizer: Any, family: Family, arguments: dict[str, Any]) -> tuple[str, str]:
    reference = Reference(tokenizer, family, SHAPES["single turn"], arguments)
    return reference.text(reference.messages[:1], prompt=True), reference.text(reference.messages)


def _label(name: str, arguments: dict[str, Any] | None = None) -> str:
    """Return the name of a row."""
    written = "".join(f", {key}: {str(value).lower()}" for key, value in (arguments or {}).items())
    return f"`{name}`{written}" if name else "none in TRL"


def _trained(shape: Shape) -> dict[str, list[int]]:
    """Return which messages are trained, by setting."""
    last_user = max(i for i, message in enumerate(shape.messages) if message["role"] == "user")
    return {
        "all_assistant": shape.answers,
        "last_turn": [index for index in shape.answers if index > last_user],
        "last_assistant": shape.answers[-1:],
    }


def _equals(prompt: list[int], ours: Ours, shape: Shape, index: int) -> bool:
    try:
        return ours.prompt(shape, index) == prompt
    except Exception:
        return False


def _beside_ours(ours: Ours, shape: Shape, train_on: str, wanted: list[Answer | None]) -> tuple[set[str], str]:
    """Return codes of what we make of a conversation, and what is wrong with it."""
    try:
        examples = ours.examples(shape, train_on)
    except Exception as error:
        return (set(), "") if None in wanted else ({REFUSED[train_on]}, f"refused: {error}")
    made = [answer for example in examples for answer in example]
    if len(made) != len(wanted) or None in wanted:
        return {"N"}, f"{len(made)} answers, but {len(wanted)} to be trained, {wanted.count(None)} of them unusable"
    pairs = zip(wanted, made, strict=True)
    differs = {f"!{code}" for want, mine in pairs if want for code in difference(want, mine, ours.tokenizer.decode)}
    return differs | ({"s"} if len(examples) > 1 else set()), " ".join(sorted(differs))


def _trl(name: str, tokenizers: dict[str, Any], training: str) -> list[Cell]:
    """Compare TRL's masks in all shapes."""
    cells = []
    for shape in SHAPES.values():
        cells.append(Cell())
        for kind, tokenizer in tokenizers.items():
            try:
                reference = Reference(tokenizer, family_of(name), shape, {})
                theirs = trl_answers(reference, training)
            except Exception:
                cells[-1].codes[kind] = {"R"}
                continue
            wanted = [reference.answer(index)[0] for index in shape.answers]
            cells[-1].codes[kind] = _differences(wanted, theirs, tokenizer)
    return cells


def _differences(wanted: list[Answer | None], theirs: list[Answer], tokenizer: Any) -> set[str]:
    if len(theirs) != len(wanted):
        return {"N"}
    codes: set[str] = set()
    for want, other in zip(wanted, theirs, strict=True):
        codes |= difference(want, other, tokenizer.decode) if want else {"k"}
    return codes


def main() -> None:
    """Compare everything, and write the tables into the page."""
    logging.getLogger("tinker_cookbook").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)  # the cookbook's advice on its renderers
    report = Report()
    for name in report.templates:
        if not name.endswith("_training"):
            say(name)
            report.template(name)
    for name in RENDERERS:
        say(name)
        report.renderer(name)
    tables, page = report.tables(), PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MARKED.sub(lambda mark: f"{mark[1]}{tables[mark[2]]}\n", page), encoding="utf-8")
    if report.faults:
        sys.exit("\n".join(report.faults))


if __name__ == "__main__":
    main()
