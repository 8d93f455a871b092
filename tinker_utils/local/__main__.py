"""`python -m tinker_utils.local`: run the embedded service."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from tinker_utils.errors import TinkerUtilsError
from tinker_utils.local.server.model_source import find
from tinker_utils.local.store.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Serve until ended. Print one line of JSON, with base_url and api_key, to stdout; everything else to stderr."""
    options = _parser().parse_args(arguments)
    # stdout carries that one line only: whatever a library prints goes to stderr.
    line = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if options.exit_with_stdin:
        _exit_with(sys.stdin.buffer)
    # Checkpoints are nobody else's, also while they are being written.
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The server hears signals itself. Until then nothing needs to be tidied up.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        # What can go wrong at once should not wait for torch to be imported.
        served = find(options.model, tuple(options.served_name))
        store = Store(options.store)
        from tinker_utils.local.server.serve import run_server

        def announce(text: str) -> None:
            print(text, file=line, flush=True)

        run_server(served, store, options.port, options.device, options.threads, announce)
    except TinkerUtilsError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _exit_with(stream: IO[bytes]) -> None:
    """End the process at the stream's end, which comes however the other side dies. Nothing needs to be tidied up."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while stream.read(4096):
                pass
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinker_utils.local", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a directory, a hub name, or 'tiny' (the packaged model)")
    parser.add_argument(
        "--served-name", action="append", default=[], help="an additional model name that clients may request"
    )
    parser.add_argument("--port", type=_port, default=0, help="a loopback port; 0 lets the system choose")
    parser.add_argument("--store", type=Path, required=True, help="the directory for checkpoints")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_threads, help="number of PyTorch threads; default: PyTorch decides")
    parser.add_argument("--exit-with-stdin", action="store_true", help="exit when standard input closes")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{port} is not a port from 0 to 65535")
    return port


def _threads(text: str) -> int:
    threads = int(text)
    if not 1 <= threads <= 1024:
        raise argparse.ArgumentTypeError(f"{threads} is not a number of threads from 1 to 1024")
    return threads


if __name__ == "__main__":
    code = main()
    # The compute thread may be in the middle of an operation, which an orderly interpreter exit would crash into.
    sys.stderr.flush()
    os._exit(code)
