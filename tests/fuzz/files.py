"""The readers of files, each with what holds whatever the file contains.

A target takes any bytes: it writes them where the reader looks for its file, and reads. What may escape a reader is a
`TinkerUtilsError` whose message is one printable line of bounded length, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from tinker_utils.basics.files import MARK
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.comparison import table
from tinker_utils.comparison.report import evaluation_table
from tinker_utils.config.loading import dump_config, load_config_from_yaml
from tinker_utils.data.files import read_conversations
from tinker_utils.data.renderers import render
from tinker_utils.data.report import Keys, duplicate_table, length_table, overlaps, truncation_table
from tinker_utils.errors import TinkerUtilsError
from tinker_utils.export.openai_server import prompt_logprobs
from tinker_utils.local.server.model_source import PACKAGED_DIRECTORY
from tinker_utils.local.server.rest import describe_checkpoint
from tinker_utils.local.store.checkpoint import CheckpointInfo
from tinker_utils.local.store.store import Store
from tinker_utils.run.archive import archive
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.metrics import MetricsReader, read_metrics
from tinker_utils.run.rollback import repair_last_line, roll_back_metrics, roll_back_samples
from tinker_utils.run.state import RunState, TrainingResult
from tinker_utils.run.status import RunFollower
from tinker_utils.style import curves, overlays
from tinker_utils.training.resuming import resume_points
from tinker_utils.views.html import samples_html, status_html
from tinker_utils.views.tokens import MaskView
from tinker_utils.visualize import summary

Target = Callable[[Path, bytes], None]
CORPUS = Path(__file__).with_name("corpus")
# Drawing takes a hundred times as long as reading: one case in so many is drawn, too.
_DRAWN = 64
_OWN = (
    "run.json", "config.yaml", "metrics.jsonl", "spending.jsonl", "train.log", "samples.jsonl", "evaluations",
    "training_curves.png", "adapter", ".lock", "STOP", "PAUSE", "previous", "checkpoints",
)  # fmt: skip


@contextmanager
def only_sentences() -> Iterator[None]:
    """Let the project's own errors pass as refusals, if their messages are what a user can be shown."""
    try:
        yield
    except TinkerUtilsError as error:
        message = str(error)
        assert message.isprintable(), message
        assert 10 < len(message) <= 1000, len(message)
        assert "Traceback" not in message


def config(directory: Path, content: bytes) -> None:
    """A configuration file; what it says survives being written to a run's directory."""
    (directory / "training.yaml").write_bytes(content)
    with only_sentences():
        read = load_config_from_yaml(directory / "training.yaml", "local")
        (directory / "config.yaml").write_text(dump_config(read), encoding="utf-8")
        assert load_config_from_yaml(directory / "config.yaml", "run") == read
        read.resolved()


def overrides(directory: Path, content: bytes) -> None:
    """Overrides as a command line passes them: as text."""
    with only_sentences():
        load_config_from_yaml(CORPUS / "config" / "local.yaml", "local", content.decode("utf-8", "replace"))


def chat(directory: Path, content: bytes) -> None:
    """Chat data, rendered and looked at."""
    _chat(directory / "train.jsonl", content)


def separated(directory: Path, content: bytes) -> None:
    """The same as CSV."""
    _chat(directory / "train.csv", content)


def _chat(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with only_sentences():
        conversations = read_conversations(path)
        duplicate_table(conversations, conversations).to_text()
        keys = Keys.of(conversations)
        assert [(each.kind, each.count) for each in overlaps(keys, keys)] == [("exactly", len(conversations))]
        rendered = render(conversations, _tokenizer(), 64, "all_assistant")
        for example in rendered.examples[:2]:
            assert 0 < example.completion_tokens < len(example.tokens) <= 64
            MaskView(example, _tokenizer())._repr_html_()
        length_table({"train": [len(example.tokens) for example in rendered.examples]}).to_text()
        truncation_table(rendered.examples, [2, 8]).to_text()


def metrics(directory: Path, content: bytes) -> None:
    """A metrics file, read whole, in two pieces as it grows, and many times over in bulk."""
    path = directory / "metrics.jsonl"
    path.write_bytes(content[: len(content) // 2])
    reader = MetricsReader(path)
    reader.poll()
    with path.open("ab") as file:
        file.write(content[len(content) // 2 :])
    reader.poll()
    with only_sentences():
        log = read_metrics(path)
        assert len(reader.log.train) <= len(log.train)
        json.dumps(summary(log))
        curves.describe(log)
        evaluation_table(log).to_text()
        if _is_drawn(content):
            curves.png(curves.figure(log, title=content[:50].decode("latin-1")), 50)
        path.write_bytes((content + b"\n") * (20_000 // (len(content) + 1) + 1))
        MetricsReader(path).poll()
    path.write_bytes(content)
    _followed(directory)
    repair_last_line(path)
    for checkpoint in ("tinker://x/weights/step-000002", None):
        roll_back_metrics(path, checkpoint, 2)
        reader.poll()


def state(directory: Path, content: bytes) -> None:
    """run.json, as the views, the loop and the result read it; with a wish for a pause beside it."""
    run = RunDirectory(directory)
    run.state.write_bytes(content)
    run.request_pause()
    _followed(directory)
    with only_sentences():
        assert all(point.progress.step >= 0 for point in resume_points(run.read_state()))
    with only_sentences():
        TrainingResult.from_state(run.path, run.read_state() or RunState())


def samples(directory: Path, content: bytes) -> None:
    """samples.jsonl, shown, and cut back when a run is resumed."""
    run = RunDirectory(directory)
    run.samples.write_bytes(content)
    _followed(directory)
    repair_last_line(run.samples)
    roll_back_samples(run.samples, 2)
    follower = RunFollower(run)
    follower.poll()
    assert not any(isinstance(sample.get("step"), int) and sample["step"] > 2 for sample in follower.samples)


def trainer(directory: Path, content: bytes) -> None:
    """Hugging Face's trainer_state.json, with itself as the settings beside it."""
    _compared(directory, content, "trainer_state.json", "adapter_config.json")


def cookbook(directory: Path, content: bytes) -> None:
    """tinker-cookbook's metrics.jsonl, with its first line as the settings beside it."""
    _compared(directory, content, "metrics.jsonl", "config.json")


def checkpoint(directory: Path, content: bytes) -> None:
    """A checkpoint's description in the store of the embedded server: a damaged one is left alone."""
    store = Store(directory / "store")
    try:
        place = store.root / "runs" / "00000000-0000-4000-8000-000000000000_train_0" / "weights" / "state~1"
        place.mkdir(parents=True, exist_ok=True)
        (place / "checkpoint.json").write_bytes(content)
        for info in store.list():
            assert isinstance(info, CheckpointInfo)
            json.dumps(describe_checkpoint(info), allow_nan=False)
            with only_sentences():
                assert store.read(info.reference).directory.is_relative_to(store.root)
        store.prune()
    finally:
        store.close()


def directory(place: Path, content: bytes) -> None:
    """A run directory that somebody has prepared: it is read or refused, and what is not a run's own stays as it is.

    Each line of a case has a name in the directory and what is there: text, a directory, a link, a pipe, a device.
    """
    mine, root = place / "mine", place / "run"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    mine.write_bytes(b"precious")
    for line in content.decode("latin-1").splitlines()[:12]:
        name, _, what = line.partition(" ")
        with contextlib.suppress(OSError, ValueError):  # no such name, or there already
            _lay(root / name.replace("/", "")[:200], what, mine)
    run = RunDirectory(root)
    known = _foreign(root)
    run.is_free()
    for read in (_followed, table.read_run, read_metrics, RunDirectory.check_own):
        with only_sentences(), contextlib.suppress(OSError) if read is _followed else contextlib.nullcontext():
            read(run if read is RunDirectory.check_own else root)
    with only_sentences(), run.lock():
        run.clear_requests()
        archive(run)
        run.write_config("run: {}\n")
        with RunLogger(run, RunState()) as logger:
            logger.record("train", 1, train_loss=1.0)
            logger.activity("starting", "now")
    assert mine.read_bytes() == b"precious"
    assert _foreign(root).items() >= known.items()


def served(directory: Path, content: bytes) -> None:
    """What a server answers that is asked for the log-probabilities of five tokens, which says it or is refused."""
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError):
        found = prompt_logprobs(parse_json(content), [5, 6, 7, 8, 9])
        assert found.shape == (4,) and np.isfinite(found).all()


TARGETS: dict[str, Target] = {
    "directory": directory,
    "config": config,
    "overrides": overrides,
    "chat": chat,
    "separated": separated,
    "metrics": metrics,
    "state": state,
    "samples": samples,
    "trainer": trainer,
    "cookbook": cookbook,
    "checkpoint": checkpoint,
    "served": served,
}


def corpus(name: str) -> list[bytes]:
    """The valid documents that a target's cases are made from."""
    if name == "directory":
        return _LAID
    folder = CORPUS / name
    return [file.read_bytes() for file in sorted(folder.iterdir())] if folder.is_dir() else _OVERRIDES


_LAID = [
    b'run.json {"format": 2}\nmetrics.jsonl {}\nconfig.yaml run: {}\nnotes mine\nadapter directory\n',
    b"metrics.jsonl pipe\nrun.json device\n.lock link\nSTOP link\n.python-3.11.7 x\n",
    b"metrics.jsonl large\nconfig.yaml large\nsamples.jsonl large\nevaluations link\n",
    b".lock process 1 on here\nprevious link\nPAUSE x\ntrain.log x\nspending.jsonl {}\n",
]
_OVERRIDES = [b"{training.epochs: 1, lora.rank: 4, output: {dir: runs/x}}", b"epochs: 1\nseed: 3\n", b"{}"]


def _compared(directory: Path, content: bytes, log: str, settings: str) -> None:
    (directory / log).write_bytes(content)
    (directory / settings).write_bytes(content.split(b"\n")[0] if log.endswith("l") else content)
    with only_sentences():
        run = table.read_run(directory)
        run.describe()
        shown = table.compare([run, run])
        shown.to_text(), shown._repr_html_()
        overlays.describe_overlay([run])
        if _is_drawn(content):
            curves.png(overlays.overlay([run]), 50)


def _followed(directory: Path) -> None:
    passed = [0.0]
    follower = RunFollower(RunDirectory(directory), clock=lambda: passed[0])
    follower.poll()
    for passed[0] in (0.0, 1.7e9, 1e18):
        status = follower.status()
        assert len(status.sentence) <= 1001
        status_html(status, follower.log.loss_unit)
    samples_html(follower.samples)


def _lay(path: Path, what: str, mine: Path) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what in ("link", "device"):
        path.symlink_to(mine if what == "link" else "/dev/zero")
    elif what == "directory":
        path.mkdir()
        (path / "mine").write_bytes(b"precious")
    elif what == "large":
        with path.open("xb") as file:
            file.truncate(8 << 30)
    else:
        with path.open("xb") as file:
            file.write(what.encode())


def _foreign(root: Path) -> dict[str, tuple[int, int]]:
    """What is in a directory under names that no run has: inode and size of each."""
    return {
        path.name: (path.lstat().st_ino, path.lstat().st_size)
        for path in root.iterdir()
        if path.name not in _OWN and not path.name.startswith(MARK)
    }


def _is_drawn(content: bytes) -> bool:
    """By the content, so that a case that fails once fails again."""
    return zlib.crc32(content) % _DRAWN == 0


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PACKAGED_DIRECTORY)
