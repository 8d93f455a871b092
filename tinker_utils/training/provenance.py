"""Notes what a run was made with: versions, the code that was checked out where it was started, and the data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

from tinker_utils.data.compat import revision_of
from tinker_utils.plan.plan import Plan
from tinker_utils.run.state import DataFile, Provenance

_PACKAGES = ("tinker-utils", "tinker", "transformers", "tokenizers", "torch")
_GIT_SECONDS = 5  # a repository that takes longer is not worth holding up a run


def provenance(plan: Plan) -> Provenance:
    """Return what a run that begins now is made with; what cannot be found out is None or missing."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return Provenance(
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        git_commit=_git("rev-parse", "HEAD") or None,
        git_clean=None if changed is None else not changed,
        tokenizer_revision=revision_of(plan.tokenizer),
        data={name: DataFile(size, digest) for name, (size, digest) in plan.files.items()},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git says of the current directory; None where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
