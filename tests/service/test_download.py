"""An export is whole or did not happen: the real SDK and service, and a storage that cuts, lies and redirects."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import pytest
from support.dripping import Dripping
from support.relay import Relay

from tinker_utils.errors import RunDirectoryError, ServiceError
from tinker_utils.export.adapter import export_adapter
from tinker_utils.run.lock import open_lock, take
from tinker_utils.run.state import model_of
from tinker_utils.service import download
from tinker_utils.service.client import connect

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EARLIER = {CONFIG: b'{"peft_type": "LORA"}', WEIGHTS: b"an earlier export's"}


class Storage(ThreadingHTTPServer):
    """Holds the files that a service signs addresses for; `sends` and `headers` say how it departs from them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Sender)
        self.base_url = f"http://127.0.0.1:{self.server_port}"
        self.asked = []
        self.reset()

    def reset(self):
        self.files, self.sends, self.headers, self.before_the_end = {}, {}, {}, lambda: None
        self.drips = False
        self.asked.clear()


class Sender(BaseHTTPRequestHandler):
    def do_GET(self):
        storage, name = self.server, self.path.strip("/")
        storage.asked.append((name, {header.lower() for header in self.headers}))
        whole = storage.files.get(name, b"")
        headers = {"Content-Length": str(len(whole))} | storage.headers.get(name, {})
        self.send_response(302 if "Location" in headers else 200)
        for header, value in headers.items():
            if value is not None:
                self.send_header(header, value)
        self.end_headers()
        sent = storage.sends.get(name, whole)
        while storage.drips and sent:
            self.wfile.write(sent[:1])
            sent = sent[1:]
            self.connection.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                self.connection.recv(1)
        self.wfile.write(sent[: len(sent) // 2])
        self.wfile.flush()
        if name == WEIGHTS:
            storage.before_the_end()
        with contextlib.suppress(OSError):
            self.wfile.write(sent[len(sent) // 2 :])

    def log_message(self, *arguments):
        pass


class Signing(Relay):
    """Gives addresses of the storage in place of the service's own; `names` are those of further files."""

    def __init__(self, target, storage):
        super().__init__(target)
        self.storage, self.addresses = storage, {}

    async def answer(self, request):
        answered = await self.forward(request)
        if not request.endpoint.endswith("external_weights_urls"):
            return answered
        given = json.loads(answered.body)
        for name, url in given["urls"].items():
            if name not in self.storage.files:
                with urlopen(url) as file:
                    self.storage.files[name] = file.read()
        own = {name: f"{self.storage.base_url}/{name}" for name in given["urls"]}
        given["urls"] = {name: url for name, url in (own | self.addresses).items() if url}
        return answered.with_body(json.dumps(given).encode())


@pytest.fixture(scope="module")
def storage():
    with Storage() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def signing(storage, config, local_service, tmp_path_factory):
    with Signing(local_service.base_url, storage) as relay, pytest.MonkeyPatch.context() as environment:
        environment.setenv("TINKER_UTILS_SERVICE_KEY", local_service.api_key)
        there = dataclasses.replace(config, service=relay.base_url)
        with connect(there, tmp_path_factory.mktemp("unused")) as service:
            yield relay, service


@pytest.fixture
def export(signing, storage, whole, tmp_path):
    """Return what exports the whole run over an earlier adapter; a failure must leave nothing beside it."""
    relay, service = signing
    storage.reset()
    relay.addresses.clear()
    target = tmp_path / "exports" / "adapter"
    target.mkdir(parents=True)
    for name, content in EARLIER.items():
        (target / name).write_bytes(content)

    def attempt():
        return export_adapter(whole.run.path, target, service=service)

    attempt.target, attempt.relay = target, relay
    yield attempt
    assert list(target.parent.iterdir()) == [target], "nothing is left beside it"
    run = model_of(whole.result.best_checkpoint)
    assert not [path for path, _ in service.checkpoints_of(run) if "external" in path], "nor at the service"


def content(target):
    return {file.name: file.read_bytes() for file in target.iterdir()}


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def sha256(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def test_a_whole_adapter_takes_the_place_of_an_earlier_one_and_no_key_goes_to_its_storage(export, storage, whole):
    storage.headers[WEIGHTS] = {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5(whole.adapter)}"}
    assert export() == export.target
    assert content(export.target).keys() == {CONFIG, WEIGHTS}
    assert content(export.target)[WEIGHTS] == whole.adapter
    assert json.loads(content(export.target)[CONFIG])["peft_type"] == "LORA"
    assert [name for name, _ in storage.asked] == [CONFIG, WEIGHTS]
    assert not {"x-api-key", "authorization", "cookie"} & set().union(*(headers for _, headers in storage.asked))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_one_that_was_cut_off_anywhere_leaves_the_earlier_one(export, storage, name, share):
    export()
    sent = storage.files[name]
    cut = min(int(len(sent) * share), len(sent) - 1)
    for file, earlier in EARLIER.items():
        (export.target / file).write_bytes(earlier)
    storage.sends[name] = sent[:cut]
    with pytest.raises(
        ServiceError, match=f"downloading {name}: only {cut:,} of {len(sent):,} bytes arrived; try again"
    ):
        export()
    assert content(export.target) == EARLIER


def spoiled(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": "crc32c=AAAAAA==, md5={md5}"},
        {"Content-MD5": "{md5}"},
        {"Content-Digest": "sha-256=:{sha256}:"},
        {"Repr-Digest": "sha-512=:AAAA:, sha-256=:{sha256}:"},
        {"Digest": "SHA-256={sha256}"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_a_checksum_that_is_given_is_compared(export, storage, whole, headers):
    """One bit of the last weight differs, which nothing else would show."""
    sums = {"md5": md5(whole.adapter), "sha256": sha256(whole.adapter)}
    storage.headers[WEIGHTS] = {name: value.format(**sums) for name, value in headers.items()}
    storage.sends[WEIGHTS] = spoiled(whole.adapter)
    with pytest.raises(ServiceError, match=f"downloading {WEIGHTS}: what arrived has another checksum"):
        export()
    assert content(export.target) == EARLIER
    del storage.sends[WEIGHTS]
    export()
    assert content(export.target)[WEIGHTS] == whole.adapter


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (WEIGHTS, lambda data: data[: len(data) // 2]),  # the header promises more than there is
        (WEIGHTS, lambda data: data + b"more"),
        (WEIGHTS, lambda data: (1 << 62).to_bytes(8, "little") + data[8:]),
        (WEIGHTS, lambda data: (2).to_bytes(8, "little") + b"{}"),
        (WEIGHTS, lambda data: b""),
        (WEIGHTS, lambda data: b"<html>signed in?</html>"),
        (CONFIG, lambda data: b"[]"),
        (CONFIG, lambda data: b"<html>"),
        (CONFIG, lambda data: b""),
        (CONFIG, lambda data: b"[" * 100_000),
    ],
)
def test_what_is_no_adapters_file_is_refused(export, storage, name, given):
    export()
    for file, earlier in EARLIER.items():
        (export.target / file).write_bytes(earlier)
    storage.files[name] = given(storage.files[name])
    with pytest.raises(ServiceError, match=f"downloading {name}: it cannot be read"):
        export()
    assert content(export.target) == EARLIER


@pytest.mark.parametrize(
    ("name", "length"), [(WEIGHTS, str(10**15)), (WEIGHTS, None), (CONFIG, str(10**9)), (CONFIG, None)]
)
def test_the_size_is_said_before_and_bounded(export, storage, name, length):
    storage.headers[name] = {"Content-Length": length}
    with pytest.raises(ServiceError, match=rf"downloading {name}: it may have .* bytes, and at most [\d,]+ are taken"):
        export()
    assert content(export.target) == EARLIER


ELSEWHERE = [
    "file:///etc/hostname",
    "ftp://127.0.0.1/adapter",
    "data:application/json,{}",
    "http://192.0.2.1/adapter",
    "http://127.0.0.1.evil.example/adapter",
    "http://localhost.evil.example/adapter",
    "http://[/adapter",
]


@pytest.mark.parametrize("redirected", [False, True])
@pytest.mark.parametrize("url", ELSEWHERE)
def test_only_https_and_this_machine_and_the_services_host_are_followed(export, storage, url, redirected):
    if redirected:
        storage.headers[WEIGHTS] = {"Location": url, "Content-Length": "0"}
    else:
        export.relay.addresses[WEIGHTS] = url
    with pytest.raises(ServiceError) as refused:
        export()
    # Python's own redirects know web addresses only.
    said = r"are followed|not allowed after 0|Invalid IPv6 URL after 0" if redirected else "are followed"
    assert re.search(said, str(refused.value))
    assert content(export.target) == EARLIER


def test_a_redirect_within_this_machine_is_followed(export, storage, whole):
    export()
    storage.files["moved"] = whole.adapter
    storage.headers[WEIGHTS] = {"Location": f"{storage.base_url}/moved", "Content-Length": "0"}
    export()
    assert content(export.target)[WEIGHTS] == whole.adapter


def test_a_storage_that_refuses_or_is_away_is_said_in_one_sentence(export):
    export.relay.addresses[WEIGHTS] = "http://127.0.0.1:9/adapter?signature=Canary"
    with pytest.raises(ServiceError, match=f"downloading {WEIGHTS}: .*refused.* after 0 bytes; try again") as refused:
        export()
    assert "Canary" not in str(refused.value)
    assert content(export.target) == EARLIER


def test_other_files_are_left_where_they_are(export, storage):
    for name in ("../../outside", "/etc/outside", "sub/adapter_config.json", "pytorch_model.bin", "x" * 300):
        export.relay.addresses[name] = f"{storage.base_url}/other"
    export()
    assert content(export.target).keys() == {CONFIG, WEIGHTS}
    assert [name for name, _ in storage.asked] == [CONFIG, WEIGHTS]


def test_an_adapter_without_its_weights_is_none(export):
    export.relay.addresses[WEIGHTS] = None
    with pytest.raises(ServiceError, match=f"gives no {WEIGHTS}, but {CONFIG}, which is no PEFT adapter"):
        export()
    assert content(export.target) == EARLIER


KILLED = """
import os, sys
from tinker_utils.service import download
def killed(path, pieces):
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), 9)
download._write = killed
urls = {name: "https://example.org" for name in download._MAX_BYTES}
download.fetch_adapter(urls, "https://x", download.Path(sys.argv[1]))
"""


def test_what_a_killed_export_left_is_cleared_and_nothing_else(export, storage):
    beside = export.target.parent
    assert subprocess.run([sys.executable, "-c", KILLED, str(export.target)]).returncode == -9
    (left,) = beside.glob(".tinker_utils-*")
    keeping, going_on, foreign = (beside / f".tinker_utils-{name}" for name in ("keeping", "going", "foreign"))
    for place in (keeping, going_on, foreign):
        shutil.copytree(left, place)
    shutil.copytree(export.target, keeping / "old")  # it was killed between the two renames
    (foreign / "notes").touch()
    lock = open_lock(going_on / "lock")
    assert take(lock)
    export()
    os.close(lock)
    assert not left.exists()
    assert all(place.exists() for place in (keeping, going_on, foreign))
    for place in (keeping, going_on, foreign):
        shutil.rmtree(place)


def test_one_that_drips_does_not_last_for_days(export, storage, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(download, "_SLOWEST_BYTES_PER_S", 1 << 60)
    storage.drips = True
    with pytest.raises(ServiceError, match=f"downloading {CONFIG}: it arrives at less than .* kB/s after [1-9]"):
        export()
    assert content(export.target) == EARLIER
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.3)
    with Dripping() as dripping, pytest.raises(ServiceError, match=f"downloading {CONFIG}: no answer within 0.3 s"):
        download.fetch_adapter(dict.fromkeys((CONFIG, WEIGHTS), dripping.base_url), dripping.base_url, export.target)
    assert content(export.target) == EARLIER


@pytest.fixture
def hears_ctrl_c():
    """A shell's background jobs are begun without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_an_interrupted_export_leaves_the_earlier_one(export, storage):
    storage.before_the_end = lambda: (os.kill(os.getpid(), signal.SIGINT), threading.Event().wait(1))
    with pytest.raises(KeyboardInterrupt):
        export()
    assert content(export.target) == EARLIER


def test_a_failure_between_the_two_renames_brings_the_earlier_one_back(export, monkeypatch):
    rename = type(export.target).rename

    def failing(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(export.target), "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        export()
    assert content(export.target) == EARLIER


def test_a_directory_with_anything_else_in_it_is_left_as_it_is(export, storage, tmp_path, whole, signing):
    (export.target / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"adapter: holds notes.txt, which is no part of an adapter"):
        export()
    assert content(export.target) == EARLIER | {"notes.txt": b"mine"}
    assert storage.asked == []
    _, service = signing
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine", encoding="utf-8")
    link.symlink_to(export.target)
    for path in (file, link):
        with pytest.raises(RunDirectoryError, match=f"{path}: the adapter cannot be written"):
            export_adapter(whole.run.path, path, service=service)
    assert file.read_text(encoding="utf-8") == "mine"
    assert link.is_symlink()


def test_a_directory_that_is_new_is_made_at_the_end_with_those_above_it(export, storage, tmp_path, whole, signing):
    _, service = signing
    storage.sends[WEIGHTS] = b""
    with pytest.raises(ServiceError):
        export_adapter(whole.run.path, tmp_path / "new" / "below" / "adapter", service=service)
    assert not (tmp_path / "new").exists()
    storage.reset()
    made = export_adapter(whole.run.path, tmp_path / "new" / "below" / "adapter", service=service)
    assert content(made)[WEIGHTS] == whole.adapter
