"""A run's best checkpoint → an adapter that `peft.PeftModel.from_pretrained` loads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tinker_utils.config.loading import load_run_config
from tinker_utils.config.paths import as_path
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import RunDirectoryError, ServiceError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import TrainingResult
from tinker_utils.service.client import Service, connect


def export_adapter(
    run: TrainingResult | Path | str, directory: Path | str | None = None, *, service: Service | str | None = None
) -> Path:
    """Write the best adapter of a run in PEFT's format.

    Args:
        run: what `fit` returned, or a run's directory.
        directory: where to write; `adapter/` in the run's directory if None. It is replaced as a whole, and at the end,
            and may hold an earlier export and nothing else.
        service: an open connection to the service that trained the run, or what `service` is in the settings, to open
            one; a URL gets the key in TINKER_UTILS_SERVICE_KEY. None opens `tinker` or `local`, whichever trained the
            run: a URL that only a run's directory names is not believed.

    Returns:
        The directory, with adapter_config.json and adapter_model.safetensors in it.

    Raises:
        RunDirectoryError: the run has no checkpoint yet, or `directory` holds something else.
        ServiceError: the service does not have the checkpoint any more, or cannot export it whole; or it is at a URL
            that was not given.
    """
    files, checkpoint = best_checkpoint(run)
    target = files.adapter if directory is None else as_path(directory, "directory")
    with service_of(files, service) as own:
        own.download_adapter(checkpoint, target)
    return target


def best_checkpoint(run: TrainingResult | Path | str) -> tuple[RunDirectory, str]:
    """Return a run's directory, and the `tinker://` path of its best checkpoint.

    Raises:
        RunDirectoryError: it has none yet.
    """
    files = RunDirectory(run.output_dir if isinstance(run, TrainingResult) else run)
    state = files.read_state()
    if not (state and state.best_checkpoint):
        raise RunDirectoryError(f"{files.path}: has no checkpoint to export; train there first.")
    return files, state.best_checkpoint


@contextlib.contextmanager
def service_of(files: RunDirectory, service: Service | str | None) -> Iterator[Service]:
    """Give the service that trained a run, as `export_adapter` says, and close what was opened for it.

    Raises:
        ServiceError: it cannot be reached, or it is at a URL that was not given.
    """
    if isinstance(service, Service):
        yield service
        return
    config = load_run_config(files.config)
    if service is None and config.service not in ("tinker", "local"):
        raise ServiceError(
            f"{files.config}: names the service {config.service}, and no directory is believed in that; if you trust "
            f"that address, give it: service={config.service!r}."
        )
    # Nor is it believed in which variable holds a key.
    trusted = replace(
        config, service=config.service if service is None else service, service_key_env=TrainingConfig.service_key_env
    )
    with connect(trusted, files.local_store) as own:
        yield own


def loading_lines(adapter: Path | str, model: str) -> str:
    """Return three lines of Python that load an adapter beside its base model, `model` as in the settings."""
    base = os.path.relpath(Path(__file__).parents[1] / "local" / "base_model") if model == "tiny" else model
    return (
        "from transformers import AutoModelForCausalLM\nfrom peft import PeftModel\nmodel = PeftModel.from_pretrained("
        f"AutoModelForCausalLM.from_pretrained({base!r}), {str(as_path(adapter, 'adapter'))!r})"
    )
