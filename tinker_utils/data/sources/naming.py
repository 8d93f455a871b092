"""Which file, or which split of a data set, the settings name for training and for validation."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
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


@dataclass(frozen=True)
class TrainingSource:
    """A source that is trained on, and the name that its losses are called by."""

    source: Source
    name: str


@dataclass(frozen=True)
class Sources:
    """The data of a run: what is trained on, and the validation sets by name; the only one has the name ``."""

    train: tuple[TrainingSource, ...]
    valid: Mapping[str, Source]


def sources_of(config: TrainingConfig) -> Sources:
    """Return where the training data and the validation data are.

    What is not named is the file `train.jsonl` or `valid.jsonl` of `data.dir`, or one of another kind; where only the
    training data are named, there is no validation but what `data.valid_fraction` holds out of them.

    Raises:
        DataError: a name is neither a file nor NAME:SPLIT, one is there twice, or several files could be meant.
    """
    given, directory = config.to_flat_dict(), config.resolve(config.data_dir)
    train, valid = given["data.train"], given["data.valid"]
    listed = train if isinstance(train, list) else [{"path": train}] if train else []
    found = [_named(config, "train", each["path"]) for each in listed]
    sets = {name: _named(config, "valid", each) for name, each in valid.items()} if isinstance(valid, dict) else {}
    if isinstance(valid, str):
        sets[""] = _named(config, "valid", valid)
    if not listed:
        found = [data_file(directory, TRAIN_FILE)]
        if not sets and exists(usual := data_file(directory, VALID_FILE)):
            sets[""] = usual
    _check(config, found, sets)
    return Sources(tuple(map(TrainingSource, found, _names(found))), sets)


def _check(config: TrainingConfig, train: Sequence[Source], sets: Mapping[str, Source]) -> None:
    named = [each for each in (*train, *sets.values()) if isinstance(each, NamedData) and not is_directory(each.name)]
    if config.revision and not named:
        raise DataError("data.revision: is that of a data set on the hub, and none is named; remove it.")
    places = list(map(_place, train))
    if twice := next((each for each, place in zip(train, places, strict=True) if places.count(place) > 1), None):
        raise DataError(f"data.train: {twice} is named twice; name it once, with a larger weight.")
    if config.valid_fraction and sets:
        there = " and ".join(map(str, sets.values()))
        raise DataError(
            f"data.valid_fraction: is {config.valid_fraction:g}, but {there} is there for validation; name the "
            "training data by data.train alone, or set data.valid_fraction: 0."
        )


def _place(source: Source) -> Hashable:
    """Return what is the same for a source by whatever way it is named."""
    path = Path(source.name) if isinstance(source, NamedData) else source
    if not exists(path):
        return source
    stat = path.stat()
    part = (source.config, source.split) if isinstance(source, NamedData) else ()
    return stat.st_dev, stat.st_ino, *part


def _names(sources: Sequence[Source]) -> list[str]:
    """Return what to call each source, in as few words as tell them apart, and without a slash."""
    paths = [uncompressed(each) if isinstance(each, Path) else Path(str(each)) for each in sources]
    stems = [path.stem if path.suffix.lower() in _SUFFIXES else path.name for path in paths]
    given = [Path(str(each)) for each in sources]
    parts = [[stem, path.name, *path.parent.parts[::-1]] for stem, path in zip(stems, given, strict=True)]
    names = stems
    for depth in range(1, max(map(len, parts))):
        if len(set(names)) == len(names):
            break
        names = ["-".join(part.strip("/\\") for part in each[1 : 1 + depth][::-1]) for each in parts]
    return names


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


def _named(config: TrainingConfig, role: str, name: str) -> Source:
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
