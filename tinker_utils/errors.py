"""The project's exceptions. Each message is one sentence: what, where, what was received, what to do.

TinkerUtilsError
├── ConfigError (ValueError)          a setting is unknown, of the wrong type or out of range
├── DataError (ValueError)            a chat file is missing, or a line of it cannot be used
├── RenderingError (ValueError)       a chat template that does not say which tokens are the answer's
├── MetricsError (ValueError)         a metrics file is missing, empty or unreadable
├── RunDirectoryError (RuntimeError)  a run directory is locked, damaged or not writable
├── ResumeError (RuntimeError)        a run cannot be continued with these settings or this data
└── ServiceError (RuntimeError)       the training service cannot be reached, or refused a request
    ├── CheckpointGoneError           the service does not have a checkpoint any more
    ├── ResultLostError               the service lost what a request came to, or failed in the middle of it
    │   └── ServiceGoneError          the service could not be reached for longer than the SDK tries
    └── ServiceTimeoutError           the service gave no answer within training.service_timeout_s

Every child also inherits the standard type that fits it, so `except ValueError` keeps working for callers that do
not know this project.
"""

from __future__ import annotations

from tinker_utils.basics.redaction import one_sentence


class TinkerUtilsError(Exception):
    """Base of every error that this project raises on purpose; its message is fit to be shown and stored anywhere."""

    def __init__(self, message: str) -> None:
        super().__init__(one_sentence(message))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback: the sentence is all that a notebook's user needs."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(TinkerUtilsError, ValueError):
    """A setting is unknown, of the wrong type, or out of range; the message names its key."""


class DataError(TinkerUtilsError, ValueError):
    """A chat file is missing, or a line of it cannot be used; the message names file and line."""


class RenderingError(TinkerUtilsError, ValueError):
    """The tokenizer's chat template cannot tell prompt tokens from completion tokens."""


class MetricsError(TinkerUtilsError, ValueError):
    """A metrics file is missing, empty, or holds no record that can be read."""


class RunDirectoryError(TinkerUtilsError, RuntimeError):
    """A run directory is locked by another process, damaged, or cannot be written."""


class ResumeError(TinkerUtilsError, RuntimeError):
    """The run in a directory cannot be continued with these settings or this data."""


class ServiceError(TinkerUtilsError, RuntimeError):
    """The training service cannot be reached, refused a request, or answered what cannot be used."""


class CheckpointGoneError(ServiceError):
    """The service answers, but does not have the checkpoint any more: it expired, was deleted or is damaged."""


class ServiceTimeoutError(ServiceError):
    """The service gave no answer for longer than the settings allow; the run resumes from its latest checkpoint."""


class ResultLostError(ServiceError):
    """The service lost what a request came to, or failed in the middle of it, so that the weights are not known."""


class ServiceGoneError(ResultLostError):
    """The service could not be reached for so long that the SDK gave up on a request."""
