"""What is trained while it is tortured: small runs that have everything in flight that a run can have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinker_utils.config.settings import LoraConfig, TrainingConfig

_SAMPLE = Path(__file__).parents[2] / "data" / "sample"
_ROWS = {"train": 14, "valid": 4}


def write_data(folder: Path) -> Path:
    """A directory with the shortest rows of the sample data."""
    folder.mkdir()
    for name, rows in _ROWS.items():
        lines = (_SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(sorted(lines, key=len)[:rows]), encoding="utf-8")
    return folder


def scenarios(data: Path) -> dict[str, tuple[TrainingConfig, bool]]:
    """By name: what to train, and whether the server is separate from the trainer.

    Seven batches an epoch, an evaluation every second step and at each epoch's end, a periodic checkpoint every fifth.
    """
    plain = TrainingConfig(
        service="local",
        model="tiny",
        lora=LoraConfig(rank=2),
        epochs=2,
        batch_size=2,
        learning_rate=3e-3,
        lr_schedule="cosine",
        log_interval_steps=3,
        checkpoint_interval_steps=5,
        eval_interval_steps=2,
        data_dir=data,
    )
    # After the first evaluation none improves by 100 nats: the sixth, after step 10, ends the run.
    stopping = replace(plain, early_stopping_patience=4, early_stopping_threshold=100.0, lr_schedule="constant")
    # What is superseded expires in an hour: far more than a run takes, and less than most clocks jump.
    expiring = replace(plain, checkpoint_ttl_seconds=3600)
    return {
        "embedded": (plain, False),
        "separate": (plain, True),
        "early stopping": (stopping, False),
        "expiring": (expiring, False),
        # Several at once: the SDK watches over such requests together.
        "samples": (replace(plain, samples_at_evaluation=3, epochs=1), False),
    }
