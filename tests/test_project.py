"""What the project says of itself agrees with what it is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import Reference
from tinker_utils.local.store.checkpoint import CheckpointInfo, ModelProgress
from tinker_utils.run.state import (
    Activity,
    DataFile,
    FollowingStep,
    Planned,
    Progress,
    Provenance,
    ResumePoint,
    RunState,
    Spent,
    Standing,
    StoppingState,
)  # fmt: skip

ROOT = Path(__file__).parents[1]


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    return dict(line.lower().replace("_", "-").split("==") for line in lines)


def test_every_dependency_is_pinned_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in wanted}
    assert names <= set(lock())
    assert lock()["torch"] == "2.13.0"
    assert lock()["tinker"].startswith("0.38.")


def test_conda_users_get_the_same_environment():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert pip == ["--requirement requirements.lock", "--editable ."]


def test_the_tables_of_settings_and_figures_are_those_of_the_code():
    subprocess.run([sys.executable, ROOT / "scripts" / "write_docs.py", "--check"], check=True)


def test_the_page_on_the_store_names_every_field_of_a_checkpoint():
    page = (ROOT / "docs" / "local_service.md").read_text(encoding="utf-8")
    owners = [CheckpointInfo, ModelProgress, LoraSpec, Reference]
    names = {name for owner in owners for name in getattr(owner, "__match_args__", ()) or owner.__struct_fields__}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_the_page_on_run_json_names_every_field():
    page = (ROOT / "docs" / "run_json.md").read_text(encoding="utf-8")
    parts = [
        Activity,
        Planned,
        Standing,
        Spent,
        Progress,
        StoppingState,
        Provenance,
        DataFile,
        FollowingStep,
        ResumePoint,
    ]
    structs = [RunState, *parts]
    names = {name for struct in structs for name in struct.__struct_fields__}
    assert {name for name in names if f"`{name}`" not in page} == set()


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_file_holds_a_key_or_a_path_of_one_machine():
    pattern = re.compile(rb"tml-[A-Za-z0-9]{20,}|/root/|/home/\w+/|--index-url|--find-links")
    here = Path(__file__)
    found = {str(path): m[0] for path in tracked() if path != here and (m := pattern.search(path.read_bytes()))}
    assert found == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_links_in_the_documents_lead_somewhere():
    for page in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_imports_that_moved_are_where_the_changelog_says():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    moved = re.findall(r"^\| `tinker_utils\.[\w.]+` \| `(tinker_utils\.[\w.]+)`", text, re.MULTILINE)
    assert len(moved) > 100
    assert [name for name in moved if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
