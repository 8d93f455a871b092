"""The model that a server serves: where its files are, and the names that clients may ask for it by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tinker_utils.errors import ServiceError
from tinker_utils.local.protocol.errors import RequestError

PACKAGED_NAME = "tiny"
PACKAGED_DIRECTORY = Path(__file__).parents[1] / "base_model"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Served:
    """A model on offer.

    Attributes:
        source: a directory (absolute) or a name on the hub.
        names: what clients may ask for.
    """

    source: str
    names: tuple[str, ...]

    def check(self, name: str) -> str:
        """Return the name if it is served; otherwise raise a `RequestError` (404) that says what is."""
        if name not in self.names:
            raise RequestError(
                f"The base model {name[:200]!r} is not served here: ask for {' or '.join(self.names)}.", 404
            )
        return name


def find(model: str, further_names: tuple[str, ...] = ()) -> Served:
    """Find the model that `--model` names: packaged, in a directory, or on the hub.

    Raises:
        ServiceError: it is neither a directory nor what a name on the hub looks like.
    """
    if model == PACKAGED_NAME:
        return Served(str(PACKAGED_DIRECTORY), _distinct(PACKAGED_NAME, *further_names))
    directory = Path(model).expanduser()
    if directory.is_dir():
        resolved = directory.resolve()
        return Served(str(resolved), _distinct(model, *further_names, resolved.name, str(resolved)))
    if not _HUB_NAME.fullmatch(model):
        raise ServiceError(
            f"The model {model!r} is not there: give a directory, a name on the hub, or {PACKAGED_NAME!r}."
        )
    return Served(model, _distinct(model, *further_names))


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
