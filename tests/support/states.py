"""Makes the state of a run from a few of its fields, as JSON has them."""

from __future__ import annotations

import msgspec

from tinker_utils.run.state import RunState


def state_of(**fields: object) -> RunState:
    """Return a state with these fields; the others have their defaults."""
    return msgspec.convert(fields, RunState)
