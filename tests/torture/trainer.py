"""`python -m torture.trainer CONFIG RUN`: trains as a script would, and prints how it ended as JSON."""

from __future__ import annotations

import json
import sys

from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.errors import TinkerUtilsError
from tinker_utils.training.start import fit_blocking
from torture.subjects import REFUSED


def main() -> None:
    """Train to the end, or to a sentence."""
    config, run = sys.argv[1:3]
    try:
        result = fit_blocking(load_config_from_yaml(config, "run"), run)
    except TinkerUtilsError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        sys.exit(REFUSED)
    print(json.dumps({"status": result.status, "steps": result.steps}), flush=True)


if __name__ == "__main__":
    main()
