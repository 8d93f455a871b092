"""What a training notebook shows besides the live view: a progress bar, a still picture, one example's mask."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from tinker_utils.metrics import Record
from tinker_utils.plotting import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinker_utils.rendering import Example


class ProgressBar:
    """An observer for `fit(…, on_record=ProgressBar(total_steps))`."""

    def __init__(self, total_steps: int) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        self._bar: Any = tqdm(total=total_steps, unit="step")
        self._losses: dict[str, str] = {}

    def __call__(self, record: Record) -> None:
        """Move on to the record's step, and show the latest losses beside the bar."""
        loss = record.get(f"{record['type']}_loss")
        if loss is not None:
            self._losses[f"{record['type']} loss"] = f"{loss:.3f}"
            self._bar.set_postfix(self._losses, refresh=False)
        if record["step"] > self._bar.n:
            self._bar.update(record["step"] - self._bar.n)
        if record["type"] == "end":
            self._bar.close()


def show_picture(drawing: Figure, alternative_text: str) -> None:
    """Display a figure as a still picture that stays in the saved notebook, with its alternative text."""
    from IPython.display import display

    display(  # type: ignore[no-untyped-call]
        {"text/plain": "<picture>", "image/png": base64.b64encode(png(drawing)).decode("ascii")},
        metadata={"image/png": {"alt": alternative_text}},
        raw=True,
    )


def marked_text(example: Example, tokenizer: Any) -> str:
    """An example as text, with each stretch of tokens that the loss is taken over between `⟦` and `⟧`."""
    weighted = [False, *(example.weights > 0).tolist()]
    parts: list[str] = []
    start = 0
    for i in range(1, len(weighted) + 1):
        if i == len(weighted) or weighted[i] != weighted[start]:
            text = tokenizer.decode(example.tokens[start:i].tolist())
            parts.append(f"⟦{text}⟧" if weighted[start] else text)
            start = i
    return "".join(parts)
