"""Set up an engine on this machine, ask it everything, and take a run through its whole cycle on it.

`make contract-tuft` and `make contract-skyrl`: on the CPU, with the packaged model, in build/engines. The environments
take 1.5 and 6 GB, and minutes to install; SkyRL wants Python 3.12 (PYTHON312=/path/to/python3.12).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinker_utils.local.server.model_source import PACKAGED_DIRECTORY

BUILD = Path("build") / "engines"
KEY = "tml-contract-key"
_READY_SECONDS = 900
_TUFT = """checkpoint_dir: {directory}/checkpoints
authorized_users: {{{key}: local-user}}
supported_models:
  - {{model_name: tiny, model_path: {model}, max_model_len: 1024, capabilities: [training], max_lora_rank: 16,
     max_loras: 16, lora_alpha_ratio: 2, micro_batch_size: 4}}
persistence: {{mode: FILE, file_path: {directory}/state.json}}
"""
# The one call of TuFT's training that needs a GPU.
_STATS = "torch.cuda.reset_peak_memory_stats()"


@dataclass
class Server:
    """An engine's server on a loopback port; its files are in `directory`, and outlive it."""

    name: str
    model: str
    directory: Path
    command: list[str]
    environment: dict[str, str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / "server.log").open("a")
        self._process = subprocess.Popen(
            self.command, cwd=self.directory, env={**os.environ, **self.environment}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=2):
                return
            time.sleep(1)
        raise SystemExit(f"{self.name} did not start; see {log.name}")

    def kill(self) -> None:
        """End it at once, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(name: str, python: str, install: list[list[str]]) -> Path:
    """Return the directory of an engine's programs, installed if they are not there."""
    directory = (BUILD / f"{name}-env").absolute()
    if not (directory / ".installed").exists():
        subprocess.run([python, "-m", "venv", directory], check=True)
        subprocess.run([directory / "bin" / "pip", "install", "--quiet", "uv"], check=True)
        for command in install:
            executable = directory / "bin" / command[0]
            subprocess.run([executable, *command[1:]], check=True, env={**os.environ, "VIRTUAL_ENV": str(directory)})
        (directory / ".installed").touch()
    return directory / "bin"


def tuft() -> Server:
    """Return TuFT 0.2.2 with its training backend alone: the one for sampling needs a GPU."""
    BUILD.mkdir(parents=True, exist_ok=True)
    overrides = BUILD.absolute() / "tuft-overrides.txt"
    overrides.write_text('torch==2.13.0\nvllm ; sys_platform == "never"\n')
    programs = environment(
        "tuft", sys.executable,
        [["pip", "install", "--quiet", "torch==2.13.0"],
         ["uv", "pip", "install", "--quiet", "--override", str(overrides), "tuft[backend]==0.2.2"]],
    )  # fmt: skip
    (source,) = programs.parent.glob("lib/python*/site-packages/tuft/backends/hf_training_model.py")
    text = source.read_text()
    if f"is_available() and {_STATS}" not in text:
        source.write_text(text.replace(_STATS, f"torch.cuda.is_available() and {_STATS}"))
    directory = BUILD.absolute() / "tuft"
    directory.mkdir(exist_ok=True)
    config = directory / "tuft.yaml"
    config.write_text(_TUFT.format(directory=directory, key=KEY, model=PACKAGED_DIRECTORY))
    port = free_port()
    command = [str(programs / "tuft"), "launch", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    more = {"RAY_OVERRIDE_RESOURCES": '{"GPU":1}', "TUFT_HOME": str(directory / "home"), "HF_HUB_OFFLINE": "1"}
    more["RAY_raylet_start_wait_time_s"] = "300"  # Ray gives its own processes 30 s, which a busy machine may exceed
    return Server("tuft 0.2.2", "tiny", directory, command, more, port)


def skyrl() -> Server:
    """Return SkyRL 0.4.0 with its JAX backend."""
    python = os.environ.get("PYTHON312", "python3.12")
    programs = environment(
        "skyrl", python, [["uv", "pip", "install", "--quiet", "skyrl[tinker,jax]==0.4.0", "aiohttp"]]
    )
    directory, port, model = BUILD.absolute() / "skyrl", free_port(), str(PACKAGED_DIRECTORY)
    backend = {"max_lora_adapters": 48, "max_lora_rank": 16, "train_micro_batch_size": 4}
    command = [
        str(programs / "uv"), "run", "--no-project", "--python", str(programs / "python"), "-m", "skyrl.tinker.api",
        "--base-model", model, "--backend", "jax", "--backend-config", json.dumps(backend), "--host", "127.0.0.1",
        "--port", str(port), "--checkpoints-base", str(directory / "checkpoints"), "--database-url",
        f"sqlite:///{directory}/tinker.db",
    ]  # fmt: skip
    more = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return Server("skyrl 0.4.0", model, directory, command, more, port)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


def main() -> int:
    os.environ["TINKER_UTILS_SERVICE_KEY"] = KEY
    from contract.cycle import cycle

    with running({"tuft": tuft, "skyrl": skyrl}[sys.argv[1]]()) as server:
        suite = [sys.executable, "-m", "contract", server.url, "--model", server.model, "--engine", server.name]
        failed = subprocess.run(suite, check=False).returncode
        return failed or cycle(server)


if __name__ == "__main__":
    sys.exit(main())
