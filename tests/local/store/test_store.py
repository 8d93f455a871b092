"""Checkpoints: whole or not there, kept as long as they should be, and resumed from bit for bit."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import uuid
from pathlib import Path

import msgspec
import pytest
import tinker
from support.local_service import MODEL, Running, logprobs, random_data, rest_client, service_client
from tinker import types

from tinker_utils.errors import ServiceError
from tinker_utils.local import lora_user_metadata, start_local_service
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import Reference
from tinker_utils.local.store.checkpoint import CheckpointInfo, ModelProgress, expiry
from tinker_utils.local.store.clock import Clock
from tinker_utils.local.store.store import Store

RUN = "01234567-89ab-cdef-0123-456789abcdef:train:0"
SPEC = LoraSpec("tiny", 4, 32.0, 0.05, ("q_proj",), 1, True, True, False)


class Time:
    """The time that goes by, and a wall clock that is wrong by some seconds."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wrong_by = 0.0

    def clock(self) -> Clock:
        """The clock of a server that starts now."""
        return Clock(lambda: 1_000_000_000.0 + self.passed + self.wrong_by, lambda: self.passed)


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path, now: Time):
    store = Store(tmp_path / "store", now.clock())
    yield store
    store.close()


def info(name: str = "a", kind: str = "weights", **fields) -> CheckpointInfo:
    return CheckpointInfo(
        reference=Reference(RUN, kind, name),
        created=5.0,
        expires=fields.pop("expires", None),
        lora=SPEC,
        progress=ModelProgress(3, 2),
        **fields,
    )


def write(store: Store, checkpoint: CheckpointInfo, content: bytes = b"weights", overwrite: bool = False) -> None:
    with store.writing(checkpoint, overwrite) as directory:
        (directory / "adapter").write_bytes(content)


def content(store: Store, name: str = "a") -> bytes:
    return (store.read(Reference(RUN, "weights", name)).directory / "adapter").read_bytes()


def test_a_checkpoint_round_trips(store: Store) -> None:
    written = info(user_metadata={"note": "ü"}, run_metadata={"lora_alpha": "32"}, has_optimizer=True)
    write(store, written)
    assert store.read(written.reference).info == msgspec.structs.replace(
        written, size_bytes=len(b"weights"), sha256={"adapter": hashlib.sha256(b"weights").hexdigest()}
    )
    assert store.list() == store.list(RUN) == [store.read(written.reference).info]
    assert store.list(RUN.replace("train:0", "train:1")) == []


def test_a_failed_write_leaves_nothing(store: Store) -> None:
    with pytest.raises(OSError, match="disk"), store.writing(info()) as directory:
        (directory / "adapter").write_bytes(b"half")
        raise OSError("disk full")
    assert store.list() == []
    assert not list(store.scratch.iterdir())


def test_duplicates_need_overwrite(store: Store) -> None:
    write(store, info(), b"first")
    with pytest.raises(RequestError, match="exists already"):
        write(store, info(), b"second")
    assert content(store) == b"first"
    write(store, info(), b"third", overwrite=True)
    assert content(store) == b"third"
    assert len(list((store.root / "runs").glob("*/weights/*"))) == 1


def test_killed_while_overwriting_the_newer_generation_wins(store: Store, tmp_path: Path) -> None:
    """What a kill between publishing the new generation and removing the old one leaves behind."""
    write(store, info(), b"new")
    (newer,) = (store.root / "runs").glob("*/weights/a~*")
    older = newer.with_name("a~1")
    newer.rename(newer.with_name("a~2"))
    older.mkdir()
    (older / "checkpoint.json").write_bytes((older.with_name("a~2") / "checkpoint.json").read_bytes())
    (older / "adapter").write_bytes(b"old")
    assert content(store) == b"new"
    store.close()
    reopened = Store(store.root)
    assert content(reopened) == b"new"
    assert not older.exists()
    reopened.close()


def test_what_was_half_written_is_removed_at_the_start(store: Store) -> None:
    (store.scratch / uuid.uuid4().hex).mkdir()
    store.close()
    Store(store.root).close()
    assert not list(store.scratch.iterdir())


def test_a_damaged_checkpoint_is_left_alone_and_not_listed(store: Store) -> None:
    write(store, info())
    (path,) = (store.root / "runs").glob("*/weights/a~1/checkpoint.json")
    for damage in (b"", b"{", b"[]", b'{"format": 99}', path.read_bytes().replace(b"q_proj", b"\xff")):
        path.write_bytes(damage)
        store.prune()
        assert store.list() == []
        with pytest.raises(RequestError, match=r"damaged: its file checkpoint\.json cannot be read"):
            store.read(info().reference)
        assert path.exists()


def test_expired_means_gone(store: Store, now: Time) -> None:
    write(store, info(expires=expiry(store.clock.latest(), 3600)))
    write(store, info("kept"))
    now.passed += 3599
    assert names(store) == ["a", "kept"]
    now.passed += 1
    assert names(store) == ["kept"]
    with pytest.raises(RequestError, match="expired"):
        store.read(info().reference)
    write(store, info(), b"again")
    assert content(store) == b"again"
    assert directories(store) == 2


def test_what_has_expired_is_removed_after_another_hour(store: Store, now: Time) -> None:
    write(store, info(expires=expiry(store.clock.latest(), 3600)))
    write(store, info("kept"))
    now.passed += 3600
    store.prune()
    now.passed += 3599
    store.prune()
    assert (names(store), directories(store)) == (["kept"], 2)
    now.passed += 1
    store.prune()
    assert (names(store), directories(store)) == (["kept"], 1)


@pytest.mark.parametrize("wrong_by", [86400.0, 400 * 86400.0, -86400.0, -999_000_000.0])
def test_a_clock_that_jumps_lets_nothing_expire(store: Store, now: Time, wrong_by: float) -> None:
    store_and_a_ttl(store)
    now.wrong_by = wrong_by
    for _ in range(3):
        store.prune()
        now.passed += 1100
        assert names(store) == ["a"]
    write(store, info("b"))
    store.set_ttl(info("b").reference, 3600)  # stamped by a clock that may be wrong
    now.wrong_by = 0.0
    now.passed += 200
    assert names(store) == ["a", "b"]
    now.passed += 101
    assert names(store) == ["b"], "its time is over by both accounts"


def test_a_server_that_starts_with_a_wrong_clock_removes_nothing_for_an_hour(store: Store, now: Time) -> None:
    store_and_a_ttl(store)
    store.close()
    now.wrong_by = 400 * 86400.0
    later = Store(store.root, now.clock())
    assert names(later) == []
    now.passed += 600
    later.prune()
    assert (names(later), directories(later)) == ([], 1)
    now.wrong_by = 0.0  # put right while the server runs
    later.prune()
    assert names(later) == ["a"]
    later.close()


def test_what_a_clock_in_1970_stamped_is_kept_while_its_server_runs(store: Store, now: Time) -> None:
    store.close()
    now.wrong_by = -999_000_000.0
    early = Store(store.root, now.clock())
    store_and_a_ttl(early)
    now.wrong_by = 0.0
    early.prune()
    assert names(early) == ["a"]
    now.passed += 3600
    assert names(early) == []
    early.close()


def store_and_a_ttl(store: Store) -> None:
    write(store, info())
    store.set_ttl(info().reference, 3600)


def names(store: Store) -> list[str]:
    return sorted(found.reference.name for found in store.list())


def directories(store: Store) -> int:
    return len(list((store.root / "runs").glob("*/weights/*")))


def test_the_ttl_can_be_changed(store: Store, now: Time) -> None:
    write(store, info())
    store.set_ttl(info().reference, 7200)
    assert store.read(info().reference).info.expires == store.clock.wall() + 7200
    store.set_ttl(info().reference, None)
    assert store.read(info().reference).info.expires is None


@pytest.mark.parametrize("ttl", [3599, 315_360_001, 0, -1, 2**60])
def test_a_ttl_out_of_bounds_is_refused(ttl: int) -> None:
    with pytest.raises(RequestError, match="ttl_seconds must be from 3600"):
        expiry(0, ttl)


def test_deleting(store: Store) -> None:
    write(store, info())
    store.delete(info().reference)
    with pytest.raises(RequestError, match="no checkpoint"):
        store.delete(info().reference)
    assert not list((store.root / "runs").iterdir())


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "../a", "-a", "a\0", "a" * 129, "é", "a~1", "a\n"])
def test_names_that_could_leave_the_store_are_refused(name: str) -> None:
    with pytest.raises(RequestError):
        Reference(RUN, "weights", name)


@pytest.mark.parametrize(
    "path",
    [
        "tinker://../weights/a",
        f"tinker://{RUN}/../a",
        f"tinker://{RUN}/weights/..",
        f"tinker://{RUN}/weights/a/b",
        f"tinker://{RUN}/weights",
        f"file://{RUN}/weights/a",
        f"{RUN}/weights/a",
        f"tinker://{RUN}/runs/a",
        f"tinker://{RUN}\n/weights/a",
        "",
    ],
)
def test_paths_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(RequestError):
        Reference.from_path(path)


def test_the_store_is_private(store: Store) -> None:
    write(store, info())
    for path in (store.root, *store.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_two_servers_cannot_share_a_store(store: Store) -> None:
    with pytest.raises(ServiceError, match=rf"in use by another server \(process {os.getpid()} on "):
        Store(store.root)


def test_a_file_system_without_locks_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ServiceError, match="its file system has no locks"):
        Store(tmp_path / "store")


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot be used"):
        Store(tmp_path / "file")


def new_model(client: tinker.ServiceClient, seed: int = 5) -> tinker.TrainingClient:
    metadata = lora_user_metadata(alpha=16, dropout=0.3)
    return client.create_lora_training_client(MODEL, rank=4, seed=seed, user_metadata=metadata).result()


def train(model: tinker.TrainingClient, steps: range) -> list[bytes]:
    seen = []
    for step in steps:
        output = model.forward_backward(random_data(step), "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=0.01, weight_decay=0.01)).result()
        seen.append(b"".join(row.tobytes() for row in logprobs(output.result())))
    return seen


def adapter_bytes(store: Path, path: str) -> bytes:
    reference = Reference.from_path(path)
    run = store / "runs" / reference.run_id.replace(":", "_")
    (file,) = run.glob(f"{reference.checkpoint_id}~*/adapter_model.safetensors")
    return file.read_bytes()


def test_killed_and_resumed_equals_never_stopped_bit_for_bit(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with start_local_service(MODEL, store, threads=1) as service:
        client = service_client(Running(service.base_url, service.api_key, store))
        straight = new_model(client)
        expected = train(straight, range(6))
        expected_adapter = adapter_bytes(store, straight.save_weights_for_sampler("end").result().path)
        stopped = new_model(client)
        assert train(stopped, range(3)) == expected[:3]
        saved = stopped.save_state("middle", user_metadata={"step": "3"}).result().path
        expiring = stopped.save_state("expiring", ttl_seconds=3600).result().path
        stopped.forward_backward(random_data(99), "cross_entropy").result()
        os.kill(service.process.pid, signal.SIGKILL)
        client.holder.close()
    (expiring_info,) = (store / "runs").glob("*/weights/expiring~*/checkpoint.json")
    expiring_info.write_text(json.dumps({**json.loads(expiring_info.read_text()), "expires": 1.0}))

    with start_local_service(MODEL, store, threads=1) as service:
        running = Running(service.base_url, service.api_key, store)
        with service_client(running) as client:
            resumed = client.create_training_client_from_state_with_optimizer(saved).result()
            assert resumed.get_info().lora_rank == 4
            resumed.forward(random_data(7), "cross_entropy").result()
            assert train(resumed, range(3, 6)) == expected[3:]
            adapter = adapter_bytes(store, resumed.save_weights_for_sampler("end").result().path)
            assert adapter == expected_adapter
            with pytest.raises(tinker.RequestFailedError, match="expired"):
                client.create_training_client_from_state(expiring).result()
        assert expiring_info.exists(), "what the clock let expire may be needed when it is put right"
        found = {c.tinker_path: c for c in rest_client(running).list_user_checkpoints().result().checkpoints}
        assert found[saved].user_metadata == {"step": "3"}
        assert expiring not in found


def test_weights_alone_restart_the_optimizer(local_service: Running) -> None:
    with service_client(local_service) as client:
        model = new_model(client)
        train(model, range(2))
        path = model.save_state("state").result().path
        weights_only = client.create_training_client_from_state(path).result()
        both = client.create_training_client_from_state_with_optimizer(path).result()
        losses = [m.forward(random_data(1), "cross_entropy").result().metrics for m in (model, weights_only, both)]
        assert losses[0] == losses[1] == losses[2]
        continued = [train(m, range(2, 5))[-1] for m in (model, weights_only, both)]
        assert continued[0] == continued[2] != continued[1]


def test_a_checkpoint_can_be_loaded_into_an_existing_model(local_service: Running) -> None:
    with service_client(local_service) as client:
        model, other = new_model(client), new_model(client, seed=6)
        train(model, range(2))
        path = model.save_state("state").result().path
        with pytest.warns(FutureWarning, match="deprecated"):
            other.load_state_with_optimizer(path).result()
        small = client.create_lora_training_client(MODEL, rank=2).result()
        with pytest.warns(FutureWarning, match="deprecated"), pytest.raises(tinker.RequestFailedError, match="rank 4"):
            small.load_state(path).result()
        evaluations = [m.forward(random_data(1), "cross_entropy").result().metrics for m in (model, other)]
        assert evaluations[0] == evaluations[1]


def test_saving_twice_under_a_name(local_service: Running) -> None:
    with service_client(local_service) as client:
        model = new_model(client)
        path = model.save_state("same").result().path
        with pytest.raises(tinker.RequestFailedError, match="exists already"):
            model.save_state("same").result()
        assert model.save_state("same", overwrite=True, ttl_seconds=3600).result().path == path
        with pytest.raises(tinker.BadRequestError, match="name"):
            model.save_state("../same").result()


def test_resuming_with_other_lora_settings_is_refused(local_service: Running) -> None:
    with service_client(local_service) as client:
        path = new_model(client).save_state("state").result().path
        with pytest.raises(tinker.RequestFailedError, match="lora_alpha"):
            client.create_training_client_from_state(path, user_metadata=lora_user_metadata(alpha=64)).result()
        same = lora_user_metadata(alpha=16, dropout=0.3)
        assert client.create_training_client_from_state(path, user_metadata=same).result().get_info().lora_rank == 4
        missing = path.replace("/state", "/nothing")
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            client.create_training_client_from_state(missing).result()


def test_what_is_not_the_stores_own_stays_whatever_it_is_called(tmp_path):
    for name in ("scratch/notes", "scratch/thesis/draft", "runs/mine/x~1/y"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scratch" / ("0f" * 16)).mkdir()
    Store(tmp_path).close()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert left >= {"scratch/notes", "scratch/thesis/draft", "runs/mine/x~1/y"}
    assert f"scratch/{'0f' * 16}" not in left


@pytest.mark.parametrize("name", ["lock", "runs", "scratch"])
def test_a_store_does_not_follow_a_link(tmp_path, name):
    mine, root = tmp_path / "mine", tmp_path / "store"
    mine.write_text("precious")
    root.mkdir()
    (root / name).symlink_to(mine)
    with pytest.raises(ServiceError, match=f"cannot be used: {name} is a link"):
        Store(root)
    assert mine.read_text() == "precious"


def test_a_store_that_is_open_to_all_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ServiceError, match="can be written by every user"):
        Store(tmp_path)
    assert not list(tmp_path.iterdir())
