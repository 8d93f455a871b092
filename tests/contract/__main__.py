"""Ask an engine: `make contract URL=… MODEL=… [ENGINE="skyrl 0.4.0"]`; 1 where an answer is not the expected one.

Its key, if it wants one, is in TINKER_UTILS_SERVICE_KEY.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from contract.questions import answers, engine
from tinker_utils.basics.redaction import first_line
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.service.client import connect

EXPECTED = Path(__file__).with_name("expected.json")


def expectation(name: str) -> dict[str, str]:
    """Return what is expected of an engine where that is not "ok"."""
    known = json.loads(EXPECTED.read_text())
    if name not in known:
        raise SystemExit(f"{name}: nothing is expected of it yet; known are {', '.join(known)}.")
    return known[name]


def main() -> int:
    parser = argparse.ArgumentParser(prog="contract", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", default="embedded", help="whose expectation to compare with")
    options = parser.parse_args()
    expected = expectation(options.engine)
    tolerated: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: tolerated.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tinker_utils.service.older_servers")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    warnings.simplefilter("ignore")
    differs = 0
    config = TrainingConfig(service=options.url, model=options.model)
    with tempfile.TemporaryDirectory() as store, connect(config, store) as service:
        asked = engine(service, options.model, options.url)
        began = time.monotonic()
        for name, answer in answers(asked):
            wanted, seconds = expected.get(name, "ok"), time.monotonic() - began
            matches = answer.startswith(wanted)
            differs += not matches
            how = f" ({', '.join(dict.fromkeys(tolerated))})" if tolerated else ""
            print(f"{name:42} {answer:22} {'' if matches else f'EXPECTED {wanted} '}{seconds:6.1f} s{how}", flush=True)
            tolerated.clear()
            began = time.monotonic()
        for name, note in asked.notes.items():
            print(f"note: {name}: {first_line(note)[:300]}")
    print(f"{differs} answers differ from what is expected of {options.engine}.")
    return int(differs > 0)


if __name__ == "__main__":
    sys.exit(main())
