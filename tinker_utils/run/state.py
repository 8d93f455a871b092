"""run.json: how a run stands or ended, and what is needed to go on with it; docs/run_json.md describes each field.

`RunDirectory` reads and writes it. What an older version wrote is brought to this format here, when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tinker_utils.basics.redaction import quoted
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.errors import RunDirectoryError

FORMAT = 2

Status = Literal["completed", "early_stopped", "stopped", "failed"]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Number = Annotated[float, msgspec.Meta(gt=-1e300, lt=1e300)]  # neither NaN nor infinite


class Activity(msgspec.Struct):
    """Says what the run is doing now, in a word and in a sentence, and since when, in Unix seconds."""

    state: str
    since: float
    detail: str = ""


class Planned(msgspec.Struct, kw_only=True):
    """The plan that the run began with."""

    model: str = ""
    service: str = ""
    epochs: Count | None = None
    total_steps: Count | None = None
    steps_per_epoch: Count | None = None
    warmup_steps: Count | None = None
    patience: Count | None = None
    expected_tokens: Count | None = None
    expected_cost_usd: Number | None = None


class Standing(msgspec.Struct, kw_only=True):
    """The progress of the run, for whoever looks at it."""

    step: Count = 0
    epoch: Count = 1
    tokens_seen: Count = 0
    completion_tokens_seen: Count = 0
    discarded_steps: Count = 0
    discarded_tokens: Count = 0
    skipped_steps: Count = 0
    cost_usd: Number | None = None
    best_step: Count | None = None
    best_val_loss: Number | None = None
    start_val_loss: Number | None = None
    evals_without_improvement: Count = 0


class Spent(msgspec.Struct):
    """Tokens that were sent to be trained on and evaluated, and in how many evaluations; spending.jsonl has each."""

    tokens: Count = 0
    eval_tokens: Count = 0
    evaluations: Count = 0


class SourceWindow(msgspec.Struct):
    """The steps since the last train record, as far as one source is concerned; `nll` is in nats."""

    nll: Number = 0.0
    completion_tokens: Count = 0


class Progress(msgspec.Struct, kw_only=True):
    """Counters of a run up to and including `step`.

    The window holds the steps since the last train record: its negative log-likelihood in nats, its tokens and time.
    `start_val_loss` is that of the base model. Discarded are steps that were in flight when an evaluation ended the
    run: trained and paid, but no part of the result. Skipped are steps whose loss or gradient was not finite, and whose
    batches were then not trained on.
    """

    step: Count = 0
    tokens: Count = 0
    completion_tokens: Count = 0
    eval_tokens: Count = 0
    evaluations: Count = 0
    start_val_loss: Number | None = None
    window_nll: Number = 0.0
    window_tokens: Count = 0
    window_completion_tokens: Count = 0
    window_sources: dict[str, SourceWindow] = {}
    window_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    discarded_steps: Count = 0
    discarded_tokens: Count = 0
    skipped_steps: Count = 0


class StoppingState(msgspec.Struct, kw_only=True):
    """Early stopping as `EarlyStopping.state_dict` gives it."""

    anchor: Number | None = None
    anchor_step: Count | None = None
    best: Number | None = None
    best_step: Count | None = None
    evals_without_improvement: Count = 0


class DataFile(msgspec.Struct):
    """A file of the data as it was: its bytes, and the SHA-256 of its content."""

    size: Count
    sha256: str


class Provenance(msgspec.Struct, kw_only=True):
    """The versions, the code and the data that the run was last begun or resumed with; None where it is not known.

    `git_commit` is that of the directory where the run was started, and `git_clean` says whether no tracked file had
    been changed. `packages` are versions by name.
    """

    python: str = ""
    packages: dict[str, str] = {}
    git_commit: str | None = None
    git_clean: bool | None = None
    tokenizer_revision: str | None = None
    data: dict[str, DataFile] = {}


class ServerProbe(msgspec.Struct, kw_only=True):
    """Says what a server was found to do with a small model, and when, in Unix seconds; None is not known.

    Attributes:
        restores: loads a saved state with the same weights.
        restores_optimizer: … and the next step is the one that followed the save.
        samples: writes after a prompt.
        samples_trained: … with the weights that it was given, not the base model's.
        unharmed: trains on after sampling as if there had been none.
        exports: gives the adapter's files.
        deletes: removes a checkpoint.
        sums_weights: a gradient grows with the weights that are sent.
        splits: a batch has the gradient of its parts.
        clips: bounds the gradient's norm.
        tokens: how many tokens were sent to find out.
        refusals: what the server said, by the name of what it refused.
    """

    at: Number
    restores: bool | None = None
    restores_optimizer: bool | None = None
    samples: bool | None = None
    samples_trained: bool | None = None
    unharmed: bool | None = None
    exports: bool | None = None
    deletes: bool | None = None
    sums_weights: bool | None = None
    splits: bool | None = None
    clips: bool | None = None
    tokens: Count = 0
    refusals: dict[str, str] = {}

    @property
    def can_sample_in_training(self) -> bool:
        """Return whether a run may ask for samples while it goes on: nothing is known to be against it."""
        return False not in (self.samples, self.samples_trained, self.unharmed)


class Checkpoint(msgspec.Struct, frozen=True):
    """A saved state: the step after which it was taken, its `tinker://` path, and whether it is a periodic one."""

    step: int
    path: str
    periodic: bool = False


class Roles(msgspec.Struct, frozen=True):
    """The best checkpoint and the latest one at a point of the run."""

    best: Checkpoint | None = None
    latest: Checkpoint | None = None


class FollowingStep(msgspec.Struct, frozen=True):
    """A step that was trained behind a checkpoint: its loss in nats per completion token, and its learning rate."""

    step: Count
    loss: Number
    learning_rate: Number


class ResumePoint(msgspec.Struct):
    """A checkpoint that the run can go on from, and its state there; the run's start has no `path`.

    The first steps behind it, where they were trained before the next save, prove a resume.
    """

    path: str
    progress: Progress
    early_stopping: StoppingState
    checkpoints: Roles
    following: list[FollowingStep] = []


class RunState(msgspec.Struct, kw_only=True):
    """The content of run.json."""

    format: int = FORMAT
    status: Literal["running"] | Status = "running"
    reason: str | None = None
    activity: Activity | None = None
    plan: Planned = msgspec.field(default_factory=Planned)
    progress: Standing | None = None
    best_checkpoint: str | None = None
    spent: Spent | None = None
    data_digest: str = ""
    rendering: dict[str, str] | None = None  # None in runs of version 0.2, whose digest is over the data's files
    provenance: Provenance | None = None
    server: ServerProbe | None = None
    resume_points: list[ResumePoint] = []  # the latest last
    periodic_checkpoints: list[Checkpoint] = []
    skipped_steps: list[Count] = []
    models: list[str] = []

    @property
    def ended(self) -> bool:
        """Return whether the run came to its end, and has nothing left to do unless the settings ask for more."""
        return self.status in ("completed", "early_stopped")


# Looked at here, once: msgspec learns a type when it first decodes it, and crashes where two threads do that at once.
msgspec.json.Decoder(RunState)


@dataclass(frozen=True)
class TrainingResult:
    """The result that `fit` returns.

    Attributes:
        status: `completed` (all epochs), `early_stopped`, `stopped` (by a person or the budget), or `failed`.
        reason: why, in a sentence.
        output_dir: the run's directory.
        steps: optimizer steps that are part of the result.
        tokens: tokens trained on in them.
        completion_tokens: how many of these the loss was taken over.
        best_step: the step of the lowest validation loss; None where nothing was evaluated.
        best_val_loss: that loss, in nats per completion token.
        start_val_loss: that of the base model, before the first step; None where it was not evaluated.
        best_checkpoint: `tinker://` path of the state at that step, or of the last one where nothing was evaluated.
        cost_usd: dollars for all that was trained and evaluated; None where no price is known.
    """

    status: Status
    reason: str
    output_dir: Path
    steps: int
    tokens: int
    completion_tokens: int
    best_step: int | None
    best_val_loss: float | None
    start_val_loss: float | None
    best_checkpoint: str | None
    cost_usd: float | None

    @classmethod
    def from_state(cls, output_dir: Path, state: RunState) -> TrainingResult:
        """Return the result of a run that has ended, from its directory and its run.json.

        Raises:
            RunDirectoryError: the run has not ended.
        """
        progress = state.progress
        if state.status == "running" or progress is None:
            raise RunDirectoryError(
                f"{output_dir / 'run.json'}: does not say how the run ended; let the run end first."
            )
        return cls(
            status=state.status,
            reason=state.reason or "",
            output_dir=output_dir,
            steps=progress.step,
            tokens=progress.tokens_seen,
            completion_tokens=progress.completion_tokens_seen,
            best_step=progress.best_step,
            best_val_loss=progress.best_val_loss,
            start_val_loss=progress.start_val_loss,
            best_checkpoint=state.best_checkpoint,
            cost_usd=progress.cost_usd,
        )


def model_of(path: str) -> str:
    """Return the model that saved a checkpoint, by the `tinker://` path."""
    return path.removeprefix("tinker://").partition("/")[0]


def decode_state(content: bytes, path: Path) -> RunState:
    """Read run.json's content; `path` is named in errors.

    Raises:
        RunDirectoryError: it was not written by this project, by a newer version of it, or is damaged.
    """
    try:
        raw = parse_json(content)
        if isinstance(raw, dict) and raw.get("format") not in (1, FORMAT):
            raise RunDirectoryError(
                f"{path}: has the format {quoted(raw.get('format'))}, and this version reads 1 and {FORMAT}; "
                "start a new run in another directory."
            )
        return msgspec.convert(_upgraded(raw), RunState)
    except (ValueError, msgspec.ValidationError) as error:
        raise RunDirectoryError(
            f"{path}: cannot be read as a run's state ({error}); restore it, or start a new run in another directory."
        ) from error


def encode_state(state: RunState) -> bytes:
    """Write run.json's content, indented by one space; ValidationError for what could not be read again."""
    msgspec.convert(msgspec.to_builtins(state), RunState)
    return msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"


def _upgraded(raw: Any) -> Any:
    """Return a state of format 1, of tinker_utils 0.1, in today's format: skipped steps had another name."""
    if not isinstance(raw, dict) or raw.get("format") == FORMAT:
        return raw
    points = raw.get("resume_points")
    listed = points if isinstance(points, list) else []
    counters = [raw, raw.get("progress"), *(point.get("progress") for point in listed if isinstance(point, dict))]
    for each in counters:
        if isinstance(each, dict) and "left_out_steps" in each:
            each["skipped_steps"] = each.pop("left_out_steps")
    return {**raw, "format": FORMAT, "plan": raw.get("plan") or {}}
