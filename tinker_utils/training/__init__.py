"""The loop: begins or resumes a run, keeps steps in flight, records what comes back, stops in time and recovers.

`start` has `fit`, `loop` what happens at each answer, `recorder` what is written of it.
"""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.training.checks import Check as Check, PreflightReport as PreflightReport, preflight as preflight
    from tinker_utils.training.start import fit as fit, fit_blocking as fit_blocking

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checks": "Check PreflightReport preflight",
        "start": "fit fit_blocking",
    },
)
