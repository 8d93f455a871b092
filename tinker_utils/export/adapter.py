"""A run's best checkpoint → an adapter that `peft.PeftModel.from_pretrained` loads."""

from __future__ import annotations

import os
from pathlib import Path

from tinker_utils.config.paths import as_path
from tinker_utils.config.settings import load_config_from_yaml
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import TrainingResult
from tinker_utils.service.client import Service, connect


def export_adapter(
    run: TrainingResult | Path | str, directory: Path | str | None = None, *, service: Service | None = None
) -> Path:
    """Write the best adapter of a run in PEFT's format.

    Args:
        run: what `fit` returned, or a run's directory.
        directory: where to write; `adapter/` in the run's directory if None. It is replaced as a whole, and at the end,
            and may hold an earlier export and nothing else.
        service: an open connection to the service that trained the run; None opens one.

    Returns:
        The directory, with adapter_config.json and adapter_model.safetensors in it.

    Raises:
        RunDirectoryError: the run has no checkpoint yet, or `directory` holds something else.
        ServiceError: the service does not have the checkpoint any more, or cannot export it whole.
    """
    files = RunDirectory(run.output_dir if isinstance(run, TrainingResult) else run)
    target = files.adapter if directory is None else as_path(directory, "directory")
    state = files.read_state()
    checkpoint = state.best_checkpoint if state else None
    if not checkpoint:
        raise RunDirectoryError(f"{files.path}: has no checkpoint to export; train there first.")
    if service is not None:
        service.download_adapter(checkpoint, target)
    else:
        with connect(load_config_from_yaml(files.config, "run"), files.local_store) as own:
            own.download_adapter(checkpoint, target)
    return target


def loading_lines(adapter: Path | str, model: str) -> str:
    """Return three lines of Python that load an adapter beside its base model, `model` as in the settings."""
    base = os.path.relpath(Path(__file__).parents[1] / "local" / "base_model") if model == "tiny" else model
    return (
        "from transformers import AutoModelForCausalLM\nfrom peft import PeftModel\nmodel = PeftModel.from_pretrained("
        f"AutoModelForCausalLM.from_pretrained({base!r}), {str(as_path(adapter, 'adapter'))!r})"
    )
