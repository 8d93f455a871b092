"""Where a training client wants log-probabilities: at every position, as on Tinker, unless it asks for less.

It asks by an entry of its model's `user_metadata`, which a hosted service merely records. Both sides import it from
here, so this module imports neither torch nor tinker.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinker_utils.local.protocol.errors import RequestError

_KEY, _WEIGHTED = "logprobs_at", "weighted"

WEIGHTED_LOGPROBS: Mapping[str, str] = {_KEY: _WEIGHTED}
"""The `user_metadata` entry of a client that reads log-probabilities only where a weight (or advantage) is not 0."""


def wants_weighted_only(metadata: Mapping[str, str]) -> bool:
    """Return whether a client asks for log-probabilities only where its loss weighs them; a `RequestError` if unclear.

    It gets 0 everywhere else, which spares the service the head of the model there.
    """
    wanted = metadata.get(_KEY)
    if wanted not in (None, _WEIGHTED):
        raise RequestError(
            f"user_metadata[{_KEY!r}] must be {_WEIGHTED!r}, but it is {wanted[:80]!r}: without it, every position "
            "has its log-probability."
        )
    return wanted is not None
