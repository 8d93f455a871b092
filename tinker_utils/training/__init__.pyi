from .checks import Check as Check, PreflightReport as PreflightReport, preflight as preflight
from .start import fit as fit, fit_blocking as fit_blocking
