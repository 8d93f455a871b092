"""Service cycles a step: this project beside a loop that waits for each step, and one that queues one step ahead.

The service counts its cycles itself; it is the embedded one behind a clock (tests/support/clocked_service.py). All
three loops train on the same batches, and must end with the same adapter.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from measure import say, table  # noqa: E402
from support.clocked_service import ClockedService  # noqa: E402

from tinker_utils.batching import in_batches  # noqa: E402
from tinker_utils.config.settings import LoraConfig, TrainingConfig  # noqa: E402
from tinker_utils.local import start_local_service  # noqa: E402
from tinker_utils.plan.plan import Plan  # noqa: E402
from tinker_utils.plan.preparing import prepare  # noqa: E402
from tinker_utils.run.directory import RunDirectory  # noqa: E402
from tinker_utils.service.client import Service, connect  # noqa: E402
from tinker_utils.service.model import Model, Submitted  # noqa: E402
from tinker_utils.training.start import fit_blocking  # noqa: E402

STEPS = 100
Loop = Callable[[Service, Plan, Path], str]  # returns the last checkpoint's path


@dataclass(frozen=True)
class Setting:
    """What a row of the table was measured under."""

    name: str
    cycle_s: float
    round_trip_s: float = 0.0
    evaluated: bool = True


SETTINGS = (
    Setting("steps only, a round trip of 1% of a cycle (100 ms to 10 s)", 0.3, round_trip_s=0.003, evaluated=False),
    Setting("the same, an evaluation every 20 steps, a save every 50", 0.3, round_trip_s=0.003),
    Setting("the same, a round trip of 20% of a cycle (100 ms to 0.5 s)", 0.5, round_trip_s=0.1),
)


def waiting(service: Service, plan: Plan, directory: Path) -> str:
    """Waits for each step before it submits the next."""
    return by_hand(service, plan, ahead=0)


def one_ahead(service: Service, plan: Plan, directory: Path) -> str:
    """Submits a step before it waits for the one before; evaluations and saves it waits for, as the cookbook does."""
    return by_hand(service, plan, ahead=1)


def this_project(service: Service, plan: Plan, directory: Path) -> str:
    """`fit`."""
    fit_blocking(plan.config, directory, service=service, preparation=plan)
    state = RunDirectory(directory).read_state()
    assert state is not None
    return state.resume_points[-1].path


def by_hand(service: Service, plan: Plan, ahead: int) -> str:
    """A loop that keeps `ahead` steps queued, and stops for evaluations and saves."""
    model, config = service.new_model(plan.config), plan.config
    queued: list[Submitted] = []
    for step in range(1, plan.total_steps + 1):
        batch, rate = plan.batches.batch(step), plan.learning_rate(step)
        queued.append(model.submit_step(batch, rate, config.weight_decay, config.grad_clip_norm))
        if plan.evaluates(step) or plan.checkpoints(step):
            look_and_save(model, plan, step)
        while len(queued) > ahead:
            queued.pop(0).result()
    return model.submit_save("last").result()


def look_and_save(model: Model, plan: Plan, step: int) -> None:
    """Evaluate or save, and wait for it."""
    if plan.evaluates(step) and plan.valid is not None:
        model.submit_evaluation(tuple(in_batches(plan.valid.examples, 256))).result()
    if plan.checkpoints(step):
        model.submit_save(f"step-{step}").result()


LOOPS: dict[str, Loop] = {"waits for each step": waiting, "one step ahead": one_ahead, "this project": this_project}


def main() -> int:
    """Print the table; the status is 1 if the loops did not learn the same."""
    rows, same = [], True
    with tempfile.TemporaryDirectory() as name, start_local_service("tiny", Path(name) / "store") as local:
        os.environ["TINKER_UTILS_SERVICE_KEY"] = local.api_key
        data = write_data(Path(name) / "data")
        for setting in SETTINGS:
            row, adapters = measure(setting, local.base_url, data, Path(name) / setting.name.replace(" ", "-")[:40])
            rows.append(row)
            same &= len(adapters) == 1
    print("## Service cycles a step\n")
    print(f"{STEPS} steps against a clocked service; counted by the service, idle cycles in brackets.\n")
    print(table(["", *LOOPS], rows))
    print(f"\nThe loops ended with {'the same adapter, byte for byte' if same else '**different adapters**'}.")
    return 0 if same else 1


def measure(setting: Setting, address: str, data: Path, directory: Path) -> tuple[list[str], set[bytes]]:
    """A row of the table, and the adapters that its loops ended with."""
    cells, adapters = [], set()
    for name, loop in LOOPS.items():
        say(f"{setting.name}: {name}")
        with ClockedService(address, setting.cycle_s, setting.round_trip_s) as clocked:
            config = settings(setting, clocked.base_url, data)
            with connect(config, directory) as service:
                last = loop(service, prepare(config), directory / name)
                cells.append(f"{clocked.cycles / clocked.steps:.2f} ({clocked.idle})")
        with connect(replace(config, service=address), directory) as service:
            files = service.download_adapter(last, directory / name / "last")
            adapters |= {file.read_bytes() for file in files if file.suffix == ".safetensors"}
    return [setting.name, *cells], adapters


def settings(setting: Setting, address: str, data: Path) -> TrainingConfig:
    """A run of one epoch, a row a step."""
    return TrainingConfig(
        service=address,
        model="tiny",
        lora=LoraConfig(rank=4),
        epochs=1,
        batch_size=1,
        eval_interval_steps=20 if setting.evaluated else 0,
        checkpoint_interval_steps=50 if setting.evaluated else 0,
        eval_at_epoch_end=False,
        data_dir=data,
    )


def write_data(directory: Path) -> Path:
    """As many of the sample's examples as there are steps."""
    directory.mkdir()
    for name, count in (("train", STEPS), ("valid", 20)):
        lines = (ROOT / "data" / "sample" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return directory


if __name__ == "__main__":
    sys.exit(main())
