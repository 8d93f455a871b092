"""The house's order: imports point down, every file has its room, frameworks stay in theirs, and importing is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinker_utils

PACKAGE = Path(tinker_utils.__file__).parent

# From the ground up. What stands on one floor does not import each other; a name that is no directory is a module.
FLOORS = """
    basics
    errors loss batching early_stopping
    config
    data
    plan
    run
    local
    service
    training
    export comparison
    style
    sweeps
    views
    visualize
    __init__ cli
"""
FLOORS_OF_LOCAL = """
    protocol
    store
    engine
    server
    launcher __main__
    __init__
"""
# All that may be imported of the embedded server from outside of it.
WAY_IN = {"tinker_utils.local", "tinker_utils.local.launcher"}
FRAMEWORKS = {
    **{name: {"local"} for name in ("torch", "peft", "starlette", "uvicorn")},
    "safetensors": {"service", "local"},
    "tinker": {"service", "local"},
    "transformers": {"data", "local"},
    "matplotlib": {"style", "sweeps", "views"},
    "ipywidgets": {"views"},
    "IPython": {"views"},
    "papermill": {"sweeps"},
    "tqdm": {"sweeps"},
}
OF_POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
CALLS_OF_POSIX = (
    "chown fchmod fchown fork geteuid getuid killpg mkfifo pread pwrite sched_getaffinity setsid statvfs umask uname"
)
# A room with more is two rooms.
MAX_MODULES = 16

MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.parent for path in MODULES})


def floors(plan: str) -> dict[str, int]:
    return {name: floor for floor, line in enumerate(plan.strip().splitlines()) for name in line.split()}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The absolute name of each module that a file imports, lazily too, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports in full: they say where a name lives"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if is_module(name) else str(node.module) for name in modules)


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def check_order(path: Path, root: Path, plan: str) -> None:
    order, inside = floors(plan), dotted(root / "__init__.py")
    room = path.relative_to(root).parts[0].removesuffix(".py")
    assert room in order, f"{path.name} is in no room of {inside}"
    for name in imports(path):
        if name.startswith(f"{inside}."):
            imported = name.removeprefix(f"{inside}.").split(".")[0]
            assert imported == room or order[imported] < order[room], f"{path.name} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_each_module_is_in_a_room_and_imports_what_is_below_it(path):
    check_order(path, PACKAGE, FLOORS)
    if path.is_relative_to(PACKAGE / "local"):
        check_order(path, PACKAGE / "local", FLOORS_OF_LOCAL)
    else:
        assert {name for name in imports(path) if name.startswith("tinker_utils.local")} <= WAY_IN


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_frameworks_stay_where_they_belong(path):
    room = path.relative_to(PACKAGE).parts[0]
    for name in {name.split(".")[0] for name in imports(path)} & set(FRAMEWORKS):
        assert room in FRAMEWORKS[name], f"{path.name} imports {name}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: dotted(room / "__init__.py"))
def test_a_room_is_of_a_size_and_hands_on_its_public_names(room):
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    assert len(modules) < MAX_MODULES
    door = importlib.import_module(dotted(room / "__init__.py"))
    # A module of a function's name would take its place as soon as it is imported.
    beside = modules | {path.name for path in room.iterdir() if path.is_dir()}
    assert not beside & set(door.__all__)
    assert all(getattr(door, name) is not None for name in door.__all__)
    assert set(door.__all__) <= set(dir(door))
    with pytest.raises(AttributeError, match="fitt"):
        _ = door.fitt


def test_nothing_on_the_way_to_a_hosted_service_is_of_one_system_only():
    """Windows lacks these; `local/` is for Linux, but its launcher and what that imports are on the way, too."""
    for path in MODULES:
        if path.is_relative_to(PACKAGE / "local") and path.stem != "launcher" and path.parent.name != "store":
            continue
        assert not {name.split(".")[0] for name in imports(path)} & OF_POSIX, path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & {f"os.{name}" for name in CALLS_OF_POSIX.split()}, path


def test_docstrings_of_functions_open_with_a_verb():
    """Those that do not mostly begin with one of these words."""
    none = {"A", "An", "The", "What", "Whether", "Which", "Who", "Whose", "Why", "How", "Where", "When", "Each", "All"}
    found = [
        f"{dotted(path)}.{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (ast.get_docstring(node) or "Return").split()[0].rstrip(",.:;") in none
    ]
    assert found == []


def test_a_class_has_a_name_of_its_own():
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(dotted(path))
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_or_anything_up_to_the_loop_loads_no_framework():
    order = floors(FLOORS)
    outside = [path for path in MODULES if not path.is_relative_to(PACKAGE / "local")]
    below = [
        dotted(path)
        for path in outside
        if order[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] < order["style"]
    ]
    for code in ("import tinker_utils", f"import {', '.join(below)}, tinker_utils.local.launcher"):
        assert not loaded_by(code) & {"torch", "tinker", "transformers", "matplotlib", "ipywidgets", "IPython"}


def test_the_public_names_are_these():
    assert sorted(tinker_utils.__all__) == [
        "EarlyStopping",
        "MaskView",
        "TinkerUtilsError",
        "TrainingConfig",
        "TrainingResult",
        "check_served",
        "compare",
        "config_form",
        "connect",
        "dashboard",
        "describe",
        "export_adapter",
        "figure",
        "fit",
        "fit_blocking",
        "load_config_from_yaml",
        "preflight",
        "prepare",
        "read_metrics",
        "rerun",
        "run_study",
        "sample_answers",
        "save_png",
    ]


def test_names_that_programs_import_from_a_room_stay_there():
    from tinker_utils.config import load_config_from_yaml
    from tinker_utils.training import fit

    assert (load_config_from_yaml, fit) == (tinker_utils.load_config_from_yaml, tinker_utils.fit)
    for module in ("tinker_utils.local", "tinker_utils.visualize"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert f"python -m {module}" in done.stdout
