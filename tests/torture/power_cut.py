"""What is left of a directory when the power is cut: what was synced, and nothing else.

A file has the content that it had when it was last synced, or none; it has a name, and an older file has lost its own,
if the directory was synced after that. No file system is as forgetful as that, and each may be in part.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def begin(directory: Path) -> None:
    """Take all that is in a directory for synced; from here on `disk_faults.c` notes what is."""
    kept = _kept(directory)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for folder, _, files in os.walk(directory):
        names = "".join(f"{entry.inode()} {entry.name}\n" for entry in os.scandir(folder))
        (kept / str(Path(folder).stat().st_ino)).write_text(names, encoding="utf-8")
        for name in files:
            file = Path(folder, name)
            shutil.copyfile(file, kept / str(file.stat().st_ino))


def restore(directory: Path) -> None:
    """Replace a directory by what the disk has of it after the cut."""
    if not directory.exists():
        return
    found = directory.with_name(f"{directory.name}.found")
    found.mkdir(mode=0o700)
    _fill(found, _kept(directory), directory, directory.stat().st_ino)
    shutil.rmtree(directory)
    found.rename(directory)


def _fill(folder: Path, kept: Path, was: Path, inode: int) -> None:
    listed = kept / str(inode)
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else ():
        number, _, name = line.partition(" ")
        if name in (".", ".."):
            continue
        # What it was is asked of what stands there now; a file that has gone since was no directory.
        if (was / name).is_dir():
            (folder / name).mkdir(mode=0o700)
            _fill(folder / name, kept, was / name, int(number))
        else:
            (folder / name).touch(mode=0o600)
            if (kept / number).exists():
                shutil.copyfile(kept / number, folder / name)


def _kept(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.disk")
