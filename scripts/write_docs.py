"""Writes the tables of settings and figures into docs/, from `config/settings.py` and `run/figures.py`.

python scripts/write_docs.py          # or: make docs
python scripts/write_docs.py --check  # writes nothing, and fails where a table is not as the code has it
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.run.figures import TRAIN, VAL, Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
# A table stands behind the comment that names it.
_MARKED = re.compile(r"(<!-- table: (\w+), by `make docs` -->\n)(?:\|.*\n)*")


def settings_table() -> str:
    """Return all settings with their defaults, their bounds and what they mean."""
    defaults = TrainingConfig().to_flat_dict()
    rows = [("key", "default", "what it may be", "on resume", "note")]
    for key, rule in RULES.items():
        default = yaml.safe_dump(defaults[key], default_flow_style=True, width=1000).partition("\n")[0]
        rows.append((f"`{key}`", default, rule.expected, "may change" if rule.resumable else "stays", rule.help))
    return table(rows)


def figures_table(figures: Sequence[Figure]) -> str:
    """Return the figures of a record with their units and what they mean."""
    rows = [("field", "unit", "what it is"), *((f"`{each.name}`", each.unit, each.meaning) for each in figures)]
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pages() -> dict[Path, str]:
    """Return the pages that hold tables, as they should be."""
    tables = {"settings": settings_table(), "train": figures_table(TRAIN), "val": figures_table(VAL)}
    texts = {path: path.read_text(encoding="utf-8") for path in (DOCS / "settings.md", DOCS / "metrics.md")}
    return {path: _MARKED.sub(lambda mark: mark[1] + tables[mark[2]], text) for path, text in texts.items()}


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a page would change")
    check = parser.parse_args().check
    changed = {path: text for path, text in pages().items() if text != path.read_text(encoding="utf-8")}
    if changed and check:
        sys.exit(f"{', '.join(path.name for path in changed)}: run `make docs`")
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
