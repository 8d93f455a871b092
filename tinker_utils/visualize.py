"""Draws a metrics file from the command line: `python -m tinker_utils.visualize --metrics-path RUN/metrics.jsonl`.

Exit code 0: the picture is written. Exit code 2: it is not, and one sentence on stderr says why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tinker_utils.basics.redaction import one_sentence, printable
from tinker_utils.errors import MetricsError, TinkerUtilsError
from tinker_utils.run.directory import write_atomically
from tinker_utils.run.metrics import read_metrics
from tinker_utils.run.series import MetricsLog

_DEFAULT_METRICS = Path("models/adapters/tinker/metrics.jsonl")
_PICTURE = "training_curves.png"
_DPI = range(30, 601)
_NAMED_LINES = 5


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence on stderr, and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.metrics_path.is_dir():
        options.metrics_path /= _DEFAULT_METRICS.name
    output = options.output or options.metrics_path.with_name(_PICTURE)
    try:
        _refuse_output(output, options.metrics_path)
        # Imported here, so that a wrong path is answered at once.
        from tinker_utils.style import curves

        log = read_metrics(options.metrics_path)
        drawing = curves.figure(log, title=options.metrics_path.absolute().parent.name)
        write_atomically(output, curves.png(drawing, options.dpi), "choose another --output.")
    except (TinkerUtilsError, OSError) as error:
        print(one_sentence(str(error)), file=sys.stderr)
        return 2
    _report_unused(options.metrics_path, log)
    print(json.dumps(summary(log)) if options.json else f"{curves.describe(log)}\nDrawn to {printable(str(output))}")
    return 0


def summary(log: MetricsLog) -> dict[str, Any]:
    """Return what `--json` prints: the figures of `log`, in its `loss_unit`."""
    best_loss, best_step = log.best()
    return {
        "loss_unit": log.loss_unit,
        "train_records": len(log.train),
        "val_records": len(log.val),
        "best_val_loss": best_loss,
        "best_step": best_step,
        "epoch_boundaries": log.epoch_boundaries(),
        "early_stop_step": log.early_stop_step(),
        "skipped_lines": log.skipped_lines,
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tinker_utils.visualize", description="Draw the curves of a run.")
    parser.add_argument(
        "--metrics-path",
        type=Path,
        default=_DEFAULT_METRICS,
        metavar="PATH",
        help="metrics file to draw, default: %(default)s",
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help=f"PNG to write, default: {_PICTURE} beside the metrics file"
    )
    parser.add_argument("--dpi", type=_dpi, default=150, help="dots per inch, default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return parser


def _dpi(text: str) -> int:
    if not text.isdecimal() or int(text) not in _DPI:
        raise argparse.ArgumentTypeError(f"must be a whole number from {_DPI[0]} to {_DPI[-1]}, got {text!r}")
    return int(text)


def _refuse_output(output: Path, metrics: Path) -> None:
    """Raise for an output that would mislead or destroy."""
    if output.suffix not in ("", ".png"):
        raise MetricsError(f"{output}: the picture is a PNG; give an --output that ends in .png.")
    if output.exists() and metrics.exists() and output.samefile(metrics):
        raise MetricsError(f"{output}: is the metrics file itself; choose another --output.")


def _report_unused(path: Path, log: MetricsLog) -> None:
    """Say on stderr what is in the file and not in the picture."""
    file = printable(str(path))
    if log.skipped_lines:
        named = "; ".join(f"line {skipped.line} {skipped.reason}" for skipped in log.skipped[:_NAMED_LINES])
        more = "; …" if log.skipped_lines > _NAMED_LINES else ""
        print(f"{file}: skipped lines: {log.skipped_lines:,}: {named}{more}.", file=sys.stderr)
    if log.other_unit_records:
        print(
            f"{file}: {log.other_unit_records:,} records are not drawn, because their losses are not in "
            f"{log.loss_unit} like those in the picture.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
