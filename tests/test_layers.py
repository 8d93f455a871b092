"""The house's order: imports point down, frameworks stay in their rooms, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinker_utils

PACKAGE = Path(tinker_utils.__file__).parent

PURE, SERVICE, LOOP, VIEW = range(4)
LAYERS = {
    **dict.fromkeys(["sentence", "errors", "rules", "strict_yaml", "strict_json", "config", "chat"], PURE),
    **dict.fromkeys(["chat_index", "token_cache", "rendered_file", "example_set"], PURE),
    **dict.fromkeys(["rendering", "chat_texts", "fixed_text", "marked_tokens", "byte_places"], PURE),
    **dict.fromkeys(["batching", "loss"], PURE),
    **dict.fromkeys(["early_stopping", "schedule", "cost", "metrics", "metrics_log", "metrics_bulk"], PURE),
    **dict.fromkeys(
        ["file_lock", "rundir", "rewinding", "spending", "checkpoints", "run_status", "throttle", "forecast"], PURE
    ),
    **dict.fromkeys(["table", "inspection"], PURE),
    **dict.fromkeys(["comparison", "comparison_run", "comparison_sources", "comparison_foreign"], PURE),
    **dict.fromkeys(["evaluations", "remarks", "preflight_report", "setting_changes"], PURE),
    **dict.fromkeys(["answer_times", "queue_depth", "background"], PURE),
    **dict.fromkeys(["pipeline", "submission", "retention", "recovery"], LOOP),
    **dict.fromkeys(["local", "model", "service", "service_errors", "service_watch", "samples"], SERVICE),
    "direct_tokenizer": SERVICE,
    **dict.fromkeys(["preparation", "journal", "result", "resuming", "bookkeeping", "loop", "training"], LOOP),
    **dict.fromkeys(
        ["export", "evaluation_samples", "interrupts", "waiting", "rerun", "study", "preflight_checks"], LOOP
    ),
    **dict.fromkeys(["plotting", "study_plot", "notebook", "dashboard", "config_form", "visualize"], VIEW),
    **dict.fromkeys(["mask_view", "overlay"], VIEW),
}
ALLOWED = {PURE: {PURE}, SERVICE: {PURE, SERVICE}, LOOP: {PURE, SERVICE, LOOP}, VIEW: {PURE, VIEW}}
FRAMEWORKS = {
    "torch": {"local"},
    "peft": {"local"},
    "transformers": {"local", "service", "direct_tokenizer"},
    "tinker": {"model", "service"},
    "starlette": {"local"},
    "uvicorn": {"local"},
    "matplotlib": {"plotting", "study_plot", "overlay", "notebook", "visualize"},
    "ipywidgets": {"dashboard", "config_form"},
    "IPython": {"dashboard", "config_form", "notebook"},
    "tqdm": {"rerun"},
}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """A module's name, or `local` for all of the embedded server; parts such as dashboard_state belong to dashboard."""
    return room_of(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def room_of(name: str) -> str:
    return name if name in LAYERS else next((room for room in LAYERS if name.startswith(f"{room}_")), name)


def imports(path: Path) -> set[str]:
    """Absolute names of all modules imported anywhere in the file, lazily too, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    package = ".".join(path.relative_to(PACKAGE.parent).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            names.add(".".join(part for part in (base, node.module) if part))
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert room(path) in LAYERS, "give the module a layer"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tinker_utils" and len(parts) > 1 and room_of(parts[1]) != room(path):
            assert LAYERS[room_of(parts[1])] in ALLOWED[LAYERS[room(path)]], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_where_they_belong(path):
    for name in {name.split(".")[0] for name in imports(path)} & set(FRAMEWORKS):
        assert room(path) in FRAMEWORKS[name], f"{path.name} imports {name}"


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_or_the_core_loads_no_framework():
    core = ", ".join(f"tinker_utils.{name}" for name, layer in LAYERS.items() if layer in (PURE, LOOP))
    for code in ("import tinker_utils", f"import {core}, tinker_utils.service, tinker_utils.local"):
        assert not loaded_by(code) & {"torch", "tinker", "transformers", "matplotlib", "ipywidgets", "IPython"}


def test_the_public_names_are_these():
    assert sorted(tinker_utils.__all__) == [
        "EarlyStopping",
        "TinkerUtilsError",
        "TrainingConfig",
        "TrainingResult",
        "connect",
        "export_adapter",
        "fit",
        "fit_blocking",
        "load_config_from_yaml",
        "preflight",
        "prepare",
        "read_metrics",
    ]
    assert all(getattr(tinker_utils, name).__module__.startswith("tinker_utils.") for name in tinker_utils.__all__)
    assert set(tinker_utils.__all__) <= set(dir(tinker_utils))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = tinker_utils.fitt
