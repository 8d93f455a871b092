"""The command `tinker-utils`: thin commands over what the package has.

Exit code 0: done. Exit code 1: the run failed, or something else is served. Exit code 2: it was not begun, and one
sentence on stderr says why.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinker_utils import visualize
from tinker_utils.basics.redaction import one_sentence
from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.config.yaml import parse_yaml
from tinker_utils.errors import ConfigError, TinkerUtilsError

# What `notebooks` writes: all that the notebooks read, where they look for it.
_MATERIAL = ("notebooks", "configs", "data/sample", "data/examples")
_WRITTEN = (".ipynb", ".yaml", ".jsonl", ".json")
_DISTRIBUTION = "tinker-utils"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["serve"]:
        os.execv(sys.executable, [sys.executable, "-m", "tinker_utils.local", *words[1:]])
    if words[:1] == ["visualize"]:
        return visualize.main(words[1:])
    options = _parser().parse_args(words)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TinkerUtilsError, OSError) as error:
        print(one_sentence(str(error)), file=sys.stderr)
        return 2


def _notebooks(options: argparse.Namespace) -> int:
    source, target = _material(), options.directory
    files = [file for name in _MATERIAL for file in (source / name).rglob("*") if file.suffix in _WRITTEN]
    names = [file.relative_to(source) for file in files if ".ipynb_checkpoints" not in file.parts]
    if there := [str(name) for name in names if os.path.lexists(target / name)]:
        raise ConfigError(f"{target}: has {there[0]} already; no file is overwritten: choose another directory.")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    print(f"{len(names)} files written; open {target / 'notebooks' / '02_train.ipynb'} in JupyterLab.")
    return 0


def _material() -> Path:
    """Return the directory that has the notebooks: the clone's root, or where the wheel has put them."""
    clone = Path(__file__).parents[1]
    if (clone / "notebooks" / "02_train.ipynb").is_file():
        return clone
    for file in importlib.metadata.files(_DISTRIBUTION) or ():
        if file.name == "02_train.ipynb":
            return Path(str(file.locate())).resolve().parents[1]
    raise ConfigError("the notebooks are not installed with this package; install tinker-utils from its wheel.")


def _train(options: argparse.Namespace) -> int:
    from tinker_utils.run.logger import log_line
    from tinker_utils.training.start import fit_blocking

    result = fit_blocking(_config(options), options.output_dir, on_record=lambda record: print(log_line(record)))
    print(f"{result.status}: {result.reason}. The run is in {result.output_dir}.")
    return 1 if result.status == "failed" else 0


def _preflight(options: argparse.Namespace) -> int:
    from tinker_utils.training.checks import preflight

    report = preflight(_config(options), options.output_dir)
    print(report)
    return 2 if any(check.status == "fail" for check in report.checks) else 0


def _compare(options: argparse.Namespace) -> int:
    from tinker_utils.comparison.table import compare, read_runs

    print(compare(read_runs(options.runs)))
    return 0


def _check_served(options: argparse.Namespace) -> int:
    from tinker_utils.export.served import check_served

    found = check_served(options.run_directory, options.url, options.model, service=options.service)
    print(found)
    return 0 if found.verdict == "as evaluated" else 1


def _config(options: argparse.Namespace) -> TrainingConfig:
    return load_config_from_yaml(options.config, options.section, overrides=dict(map(_setting, options.set)))


def _setting(text: str) -> tuple[str, Any]:
    """Return a dotted key and its value, of `key=value`; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected a setting and its value; write --set training.epochs=1.")
    return key.strip(), parse_yaml(value)


def _parser() -> argparse.ArgumentParser:
    parser = visualize.Parser(prog=_DISTRIBUTION, description="Fine-tune language models with LoRA on Tinker.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    notebooks = commands.add_parser("notebooks", help="write the notebooks, a configuration and sample data")
    notebooks.add_argument("directory", type=Path, metavar="DIR")
    notebooks.set_defaults(run=_notebooks)

    for name, run, words in (
        ("train", _train, "start a run, or resume it"),
        ("preflight", _preflight, "check everything that a run needs, before it starts"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("--config", type=Path, default=Path("configs/training.yaml"), metavar="FILE")
        command.add_argument(
            "--section", default="local", help="section of the configuration file, default: %(default)s"
        )
        command.add_argument(
            "--output-dir", type=Path, metavar="RUN", help="run directory, default: the section's output.dir"
        )
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
        command.set_defaults(run=run)

    compare = commands.add_parser("compare", help="tabulate what differs between runs")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    compare.set_defaults(run=_compare)

    served = commands.add_parser("check-served", help="ask a server whether it serves what a run evaluated")
    served.add_argument("run_directory", type=Path, metavar="RUN")
    served.add_argument("url", metavar="URL", help="an OpenAI-compatible server, such as http://localhost:8000/v1")
    served.add_argument("--model", metavar="NAME", help="what it serves the adapter as, default: its only one")
    served.add_argument("--service", metavar="URL", help="where the run was trained, if at a URL")
    served.set_defaults(run=_check_served)
    commands.add_parser("serve", help="run the embedded service; see serve --help", add_help=False)
    commands.add_parser("visualize", help="draw the curves of a run; see visualize --help", add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
