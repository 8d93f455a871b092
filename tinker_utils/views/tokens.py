"""Shows which tokens of an example the loss is taken over: as HTML in a notebook, as text anywhere else.

The HTML is made of semantic elements with a legend. The tokens in the loss stand out by a background, by bold print and
by an underline, so that they are told apart without colour; colours come from the notebook's theme, light or dark.
"""

from __future__ import annotations

import html
from itertools import groupby
from pathlib import Path
from typing import Any

from tinker_utils.basics.redaction import printable_lines
from tinker_utils.basics.table import NO_MATHEMATICS, Table
from tinker_utils.batching import Example
from tinker_utils.plan.plan import Plan

# Signs that would be invisible or act on a terminal are shown as what Unicode draws for them.
_CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
# The fallbacks are for pages that set no theme: the colours of the page itself, and a blue that shows on any of them.
_FRAME = (
    "margin:0;padding:0.6em 0.8em;color:var(--jp-content-font-color1,inherit);"
    "border:1px solid var(--jp-border-color2,currentColor);border-radius:3px"
)
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--jp-code-font-family,monospace);line-height:1.7"
_MARK = (
    "color:inherit;background:rgba(86,180,233,0.25);font-weight:bold;text-decoration:underline 2px;"
    "text-underline-offset:0.2em;unicode-bidi:isolate"
)


def stretches(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the example's text in stretches of tokens that are alike: (text, whether the loss is taken over it)."""
    # The first token is never a target: nothing comes before it that it could be predicted from.
    in_loss = [False, *(example.weights > 0).tolist()]
    pairs = zip(example.tokens.tolist(), in_loss, strict=True)
    grouped = ((counts, [token for token, _ in group]) for counts, group in groupby(pairs, key=lambda pair: pair[1]))
    return [(tokenizer.decode(tokens), counts) for counts, tokens in grouped]


class MaskView:
    """One example with its mask; the last expression of a cell shows it.

    Args:
        example: what to show.
        tokenizer: decodes its tokens.
        title: stands above the text.
    """

    def __init__(self, example: Example, tokenizer: Any, title: str = "One example") -> None:
        self.stretches = stretches(example, tokenizer)
        self.title = title
        self.tokens = example.token_count  # as everywhere: what the model reads
        self.completion_tokens = example.completion_tokens

    @classmethod
    def of(cls, plan: Plan, which: str = "first", place: int = 0) -> MaskView | Table:
        """Return one training example of a plan, or why lines are skipped.

        Args:
            plan: what `prepare` gave.
            which: as in `Plan.example`; or `skipped`, a table of lines that are not trained on.
            place: which of them, from 0.

        Raises:
            ConfigError: there is no such kind, or none at this place.
        """
        if which == "skipped":
            return Table(("skipped", "why"), tuple(_parted(reason) for reason in plan.train.reasons), "Skipped lines")
        example = plan.example(which, place)
        return cls(example, plan.tokenizer, f"Training example, {which}, {place}")

    def __repr__(self) -> str:
        """Return the text with each stretch that the loss is taken over between `⟦` and `⟧`."""
        return "".join(f"⟦{_visible(text)}⟧" if counts else _visible(text) for text, counts in self.stretches)

    def _repr_html_(self) -> str:
        text = "".join(_stretch(text, counts) for text, counts in self.stretches)
        given = self.tokens - self.completion_tokens
        legend = (
            f'<mark style="{_MARK}">{self.completion_tokens:,} of {self.tokens:,} tokens are in the loss</mark>'
            f" · {given:,} are context only"
        )
        title = html.escape(self.title)
        return (
            f'<figure class="{NO_MATHEMATICS}" aria-label="{title}" style="{_FRAME}">'
            f"<figcaption><strong>{title}</strong> · {legend}</figcaption>"
            f'<div style="{_TEXT}">{text}</div></figure>'
        )


def alignment_table(example: Example, tokenizer: Any, start: int = 0, stop: int | None = None) -> Table:
    """Return what the model is given at each position, what it has to predict there, and whether that counts.

    Args:
        example: the example.
        tokenizer: decodes its tokens.
        start: the first position to show, from 0.
        stop: the position after the last one to show; all by default.
    """
    positions = range(example.token_count)[start:stop]
    rows = [
        (
            str(position),
            _quoted(tokenizer, example.input_tokens[position]),
            _quoted(tokenizer, example.target_tokens[position]),
            f"{example.weights[position]:g}",
        )
        for position in positions
    ]
    return Table(("position", "input", "target", "weight"), tuple(rows), "Inputs, targets and weights, by position")


def _parted(reason: str) -> tuple[str, str]:
    """Return where a reason's line stands, and the rest of its sentence."""
    where, _, why = reason.partition(": ")
    return Path(where).name, why


def _quoted(tokenizer: Any, token: int) -> str:
    return repr(tokenizer.decode([int(token)]))


def _visible(text: str) -> str:
    return printable_lines(text.translate(_CONTROL_PICTURES))


def _stretch(text: str, counts: bool) -> str:
    element, style = ("mark", _MARK) if counts else ("span", "unicode-bidi:isolate")
    # A line break that counts would leave no trace at the end of an answer.
    text = _visible(text.replace("\n", "↵\n") if counts else text)
    return f'<{element} style="{style}">{html.escape(text)}</{element}>'
