"""Servers written for an older SDK: the real SDK, the embedded server, and a relay that refuses as they do."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from peft import PeftModel
from safetensors.numpy import load_file
from support.faulty_service import Fault, dropped_after, passes, refused
from support.local_service import MODEL_DIRECTORY
from support.older_server import SKYRL, TUFT, OlderServer
from support.small_runs import adapter_bytes, history, records
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinker_utils.errors import CheckpointGoneError, ServiceError
from tinker_utils.service.client import connect
from tinker_utils.service.download import fetch_archive
from tinker_utils.training.start import fit, fit_blocking

pytestmark = pytest.mark.usefixtures("key")
as_each = pytest.mark.parametrize("lacks", [SKYRL, TUFT], ids=["as SkyRL", "as TuFT"])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Archives(ThreadingHTTPServer):
    """Gives one archive, at any path."""

    content = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/download"


class Sender(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def archives():
    with Archives(("127.0.0.1", 0), Sender) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def opened(older, config, directory):
    return connect(dataclasses.replace(config, service=older.base_url), directory)


def packed(adapter, **changes):
    """Return an adapter's files as an archive; `changes` are to its configuration."""
    content = {file.name: file.read_bytes() for file in adapter.iterdir()}
    content[CONFIG] = json.dumps({**json.loads(content[CONFIG]), **changes}).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@as_each
async def test_a_run_on_one_is_the_run_on_ours(lacks, local_service, config, service, run, whole):
    """Saves whose answers are lost, a stop, a resume and a lost model among it."""
    with OlderServer(local_service.base_url, lacks) as older:
        there = dataclasses.replace(config, service=older.base_url, steps_in_flight=4)
        older.faults = [Fault("save_weights", dropped_after, skip=1)]
        stopped = await fit(there, run.path, on_record=lambda record: record["type"] == "val" and run.request_stop())
        assert stopped.status == "stopped"
        # The SDK asks four times before it believes this.
        gone = refused(400, b'{"detail": "Model m_1 not loaded (stale)"}')
        older.faults.append(Fault("retrieve_future", gone, skip=1, times=4, on=passes))
        result = await fit(there, run.path)
        assert result.status == "completed"
        assert older.struck.count("save_weights") == 1
        assert older.sent_too_early == []
        assert set(older.refused) >= {"load_weights"} | ({"create_model"} if "optimizer_config" in lacks else set())
    went_back = [r["message"] for r in records(run, "notice") if "went back" in r["message"]]
    assert len(went_back) == 1 and "not loaded" in went_back[0]
    figures = [r for r in history(run) if r["type"] in ("train", "val")]
    assert figures == [r for r in history(whole.run) if r["type"] in ("train", "val")]
    assert adapter_bytes(run, service) == whole.adapter


@as_each
def test_samples_of_a_model_in_training_and_of_a_checkpoint(lacks, local_service, config, whole, tmp_path):
    with OlderServer(local_service.base_url, lacks) as older, opened(older, config, tmp_path) as service:
        sampled = service.sample([[5, 6, 7]], whole.result.best_checkpoint, max_tokens=3)
        model = service.restored_model(whole.result.best_checkpoint, config)
        assert model.submit_samples([[5, 6, 7]], 3).result() == sampled
        assert len(sampled[0]) == 3


def test_a_checkpoint_that_is_gone_is_told_from_one_that_is_refused(local_service, config, whole, tmp_path):
    with OlderServer(local_service.base_url, TUFT) as older, opened(older, config, tmp_path) as service:
        gone = whole.result.best_checkpoint + "0"
        with pytest.raises(CheckpointGoneError, match=f"{gone} expired or was deleted"):
            service.restored_model(gone, config)


def test_an_archive_becomes_an_adapter_that_names_its_modules(
    local_service, config, service, whole, archives, tmp_path
):
    """PEFT would adapt two of the seven modules otherwise, and drop the other tensors without a word."""
    checkpoint = whole.result.best_checkpoint
    service.download_adapter(checkpoint, tmp_path / "ours")
    archives.content = packed(tmp_path / "ours", target_modules=None)
    with OlderServer(local_service.base_url, SKYRL, archives.url) as older, opened(older, config, tmp_path) as there:
        files = there.download_adapter(checkpoint, tmp_path / "theirs")
        assert "save_weights_external" in older.refused
    assert [file.name for file in files] == [CONFIG, WEIGHTS]
    assert (tmp_path / "theirs" / WEIGHTS).read_bytes() == (tmp_path / "ours" / WEIGHTS).read_bytes()
    ours, theirs = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("ours", "theirs"))
    assert theirs["target_modules"] == sorted(ours["target_modules"])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY), tmp_path / "theirs")
    adapted = [name for name, _ in loaded.named_parameters() if "lora_" in name]
    assert len(adapted) == len(load_file(tmp_path / "theirs" / WEIGHTS))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["ours", "theirs"], "no archive is left"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: b"no archive", "the archive of the adapter: it cannot be read"),
        (lambda content: content[:-2000], "the archive of the adapter: it cannot be read"),
        (None, "it holds no adapter_model.safetensors"),
    ],
    ids=["no archive", "cut off", "no weights"],
)
def test_an_archive_that_is_none_leaves_nothing(local_service, config, service, whole, archives, tmp_path, spoil, said):
    service.download_adapter(whole.result.best_checkpoint, tmp_path / "ours")
    if spoil is None:
        (tmp_path / "ours" / WEIGHTS).unlink()
    archives.content = packed(tmp_path / "ours") if spoil is None else spoil(packed(tmp_path / "ours"))
    with (
        OlderServer(local_service.base_url, SKYRL, archives.url) as older,
        opened(older, config, tmp_path) as there,
        pytest.raises(ServiceError, match=said),
    ):
        there.download_adapter(whole.result.best_checkpoint, tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def header(kind=tarfile.REGTYPE, size=0, name="member"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header() * 1001 + header(size=1 << 20), "it holds no adapter_config.json"),
        (header(size=1 << 28) + bytes(1 << 28), "it holds more than the files of an adapter"),
        (header(tarfile.GNUTYPE_LONGNAME, 1 << 21) + bytes(1 << 21), "it holds more than the files of an adapter"),
        (header(tarfile.XHDTYPE) * 3000, "maximum recursion depth exceeded"),
        (header(tarfile.GNUTYPE_SPARSE, name=CONFIG) + bytes(1 << 10), "it holds no adapter_config.json"),
    ],
    ids=["members", "zeros", "a long name", "headers of headers", "a sparse file"],
)
def test_an_archive_that_would_take_long_to_read_is_ended(archives, tmp_path, content, said):
    """Each is cut off, too, which would be said if it was read to its end."""
    archives.content = gzip.compress(content, 1)[:-8]
    with pytest.raises(ServiceError, match=said):
        fetch_archive(archives.url, archives.url, tmp_path / "theirs")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_on_the_servers_own_disk_is_refused_in_a_sentence(local_service, config, whole, tmp_path):
    with (
        OlderServer(local_service.base_url, TUFT) as older,
        opened(older, config, tmp_path) as there,
        pytest.raises(ServiceError, match=r"at a path of its own machine \(file://\), and only https"),
    ):
        there.download_adapter(whole.result.best_checkpoint, tmp_path / "theirs")


def test_an_optimizer_that_was_asked_for_is_not_left_out(local_service, key):
    """What an older server refuses is refused where it is not the default: nothing is silently ignored."""
    import tinker
    from tinker.types.optimizer import DimuonOptimizerConfig

    from tinker_utils.service.compat import keep_keys_home

    with OlderServer(local_service.base_url, TUFT) as older:
        keep_keys_home(older.base_url, local_service.api_key)
        client = tinker.ServiceClient(base_url=older.base_url, api_key=local_service.api_key)
        with pytest.raises(tinker.UnprocessableEntityError, match="optimizer_config"):
            client.create_lora_training_client("tiny", rank=4, optimizer=DimuonOptimizerConfig()).result()
        client.create_lora_training_client("tiny", rank=4).result()
        client.close("success").result()


def test_the_gradients_norm_has_its_name(local_service, config, run):
    with OlderServer(local_service.base_url, SKYRL) as older:
        there = dataclasses.replace(config, service=older.base_url, epochs=1, log_interval_steps=1)
        fit_blocking(there, run.path)
    assert all(record["grad_norm"] > 0 for record in records(run, "train"))


def test_a_sample_ends_where_the_template_ends_an_answer_whatever_the_server_knows(service):
    from tinker_utils.data.renderers import as_renderer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    stop = as_renderer(tokenizer).stops
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    ids = text["input_ids"] if hasattr(text, "keys") else text
    assert tokenizer.eos_token_id in stop
    assert stop and set(stop) <= set(tokenizer.all_special_ids)
    assert set(stop) & set(ids)
    whole = service.sample([[5, 6, 7]], max_tokens=6)[0]
    assert service.sample([[5, 6, 7]], max_tokens=6, stop=[whole[1]])[0] == whole[: whole.index(whole[1]) + 1]
