"""Which file, or which split of a data set, the settings name for training and for validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinker_utils.basics.redaction import quoted
from tinker_utils.config.paths import exists, is_directory, is_file
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import DataError

TRAIN_FILE, VALID_FILE, TEST_FILE = "train.jsonl", "valid.jsonl", "test.jsonl"
# What separates the fields of a file whose name ends so.
DELIMITERS: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
_PACKED = (".gz", ".zst")
_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".feather", *DELIMITERS)
# A split may be a part of one, as in train[:10%].
_NAMED = re.compile(r"(?P<name>[^:]+)(?::(?P<config>[^:\[\]]+))?:(?P<split>[^:\[\]]+(?:\[[^\[\]]*\])?)")


@dataclass(frozen=True)
class NamedData:
    """A split of a data set on the hub, or of one in a directory.

    Attributes:
        name: the data set's, or the directory.
        split: as the library `datasets` names it, such as `train` or `train[:10%]`.
        config: which of several variants of the data set.
        revision: the commit, tag or branch on the hub.
    """

    name: str
    split: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, (self.name, self.config, self.split)))

    @property
    def is_saved(self) -> bool:
        """Return whether it is a directory that the library itself has written."""
        directory = Path(self.name)
        return any(exists(directory / name) for name in ("state.json", "dataset_dict.json"))


Source = Path | NamedData


def sources_of(config: TrainingConfig) -> tuple[Source, Source | None]:
    """Return where the training data and the validation data are; None where nothing is evaluated.

    What is not named is the file `train.jsonl` or `valid.jsonl` of `data.dir`, or one of another kind; where only the
    training data are named, there is no validation.

    Raises:
        DataError: a name is neither a file nor NAME:SPLIT, or several files could be meant.
    """
    train, valid = (_named(config, key, name) for key, name in (("train", config.train), ("valid", config.valid)))
    named = [source for source in (train, valid) if isinstance(source, NamedData) and not is_directory(source.name)]
    if config.revision and not named:
        raise DataError("data.revision: is that of a data set on the hub, and none is named; remove it.")
    directory = config.resolve(config.data_dir)
    if train is None:
        train = data_file(directory, TRAIN_FILE)
        found = valid or data_file(directory, VALID_FILE)
        valid = found if isinstance(found, NamedData) or found.exists() else None
    return train, valid


def data_file(directory: Path, name: str) -> Path:
    """Return the file of this name in a directory, such as `train.jsonl`, or the one of another kind in its place.

    Where there is none of either, the file of this name is what is missing.

    Raises:
        DataError: several could be meant.
    """
    usual, role = directory / name, Path(name).stem
    if exists(usual) or not is_directory(directory):
        return usual
    found = sorted(
        path for path in directory.glob(f"{role}.*") if uncompressed(path).stem == role and _is_readable(path)
    )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{directory}: holds {names}; keep one of them there.")
    return found[0] if found else usual


def uncompressed(path: Path) -> Path:
    """Return a path without the suffix that says it is compressed."""
    return path.with_suffix("") if path.suffix.lower() in _PACKED else path


def _is_readable(path: Path) -> bool:
    return uncompressed(path).suffix.lower() in _SUFFIXES


def _named(config: TrainingConfig, role: str, name: str | None) -> Source | None:
    if name is None:
        return None
    path = config.resolve(Path(name))
    if is_file(path):
        return path
    if (match := _NAMED.fullmatch(name)) and not exists(path):
        directory = config.resolve(Path(match["name"]))
        where = str(directory) if is_directory(directory) else match["name"]
        return NamedData(where, match["split"], match["config"], config.revision)
    raise DataError(
        f"data.{role}: expected a file, or NAME:SPLIT for a split of a data set, received {quoted(name)}, which is "
        f"{'a directory' if is_directory(path) else 'no file'}; correct it."
    )
