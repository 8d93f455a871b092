"""What a server serves: the run's adapter, the base model or something else, and answers that say nothing of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import socket

import numpy as np
import pytest
import torch
from support.dripping import CHUNK, HEAD, Dripping
from support.openai_server import BASE, OpenAIServer
from support.small_runs import records

from tinker_utils import check_served, export_adapter, prepare
from tinker_utils.cli import main
from tinker_utils.errors import ConfigError, DataError, RunDirectoryError, ServiceError
from tinker_utils.export import openai_server
from tinker_utils.export.served import verdict_on
from tinker_utils.service.address import key_of
from tinker_utils.service.compat import hosted_address

VARIABLE = "TINKER_UTILS_SERVED_KEY"
KEY = "sk-Canary-Served-0123"


@pytest.fixture(scope="module")
def adapters(whole, service, tmp_path_factory):
    """The run's adapter, as it was exported, and an earlier one of the same run."""
    directory = tmp_path_factory.mktemp("adapters")
    (earlier,) = (record["path"] for record in records(whole.run, "checkpoint") if record["step"] == 8)
    service.download_adapter(earlier, directory / "earlier")
    return {"mine": export_adapter(whole.result, directory / "mine", service=service), "earlier": directory / "earlier"}


@pytest.fixture(scope="module")
def running(adapters):
    with OpenAIServer(adapters) as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    return running


@pytest.fixture
def checked(whole, service, server):
    return lambda **options: check_served(whole.result, server.base_url, "mine", service=service, **options)


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize(
    ("served", "verdict"), [("mine", "as evaluated"), (BASE, "the base model"), ("earlier", "something else")]
)
def test_what_answers_to_the_adapters_name_is_found_out(form, served, verdict, checked, server, whole):
    """The losses of the run are those that it has logged, and what is served comes from plain transformers and peft."""
    server.serves["mine"] = served
    server.fields = {"prompt_logprobs"} if form == "prompt_logprobs" else {"echo", "logprobs"}
    found = checked()
    assert found.verdict == verdict
    counts, *losses = (np.array(column) for column in zip(*found.rows, strict=True))
    losses = [float((each * counts).sum() / counts.sum()) for each in losses]
    assert losses[1] == pytest.approx(whole.result.best_val_loss, abs=1e-4)
    assert losses[0] == pytest.approx({"mine": losses[1], BASE: losses[2]}.get(served, losses[0]), abs=1e-4)
    # Less than what an adapter of four steps less makes, which is no rounding.
    assert (found.to_run < 1e-4, found.to_base < 1e-4) == (served == "mine", served == BASE)
    # A mean of absolute values is at least the value of the mean.
    assert found.apart >= losses[2] - losses[1] > 1
    assert f"mine at {server.base_url} is {verdict}" in str(found) and "\n" not in str(found)
    assert found._repr_html_().count("<tr>") == 1 + len(found.rows) and str(found)[:40] in found._repr_html_()


def test_sixteen_bits_are_no_other_weights(adapters, whole, service):
    with OpenAIServer(adapters, torch.bfloat16) as rounded:
        found = {name: check_served(whole.run.path, rounded.base_url, name, service=service) for name in rounded.serves}
    assert {name: each.verdict for name, each in found.items()} == {
        "mine": "as evaluated", BASE: "the base model", "earlier": "something else"
    }  # fmt: skip
    assert found["mine"].to_run > 1e-3


@pytest.mark.parametrize(
    ("to_run", "to_base", "apart", "verdict"),
    [
        (0.02, 1.01, 1.0, "as evaluated"),
        (1.01, 0.02, 1.0, "the base model"),
        (0.5, 0.5, 1.0, "something else"),
        (0.2, 1.9, 2.0, "something else"),  # a tenth of the way: no rounding goes so far
        (1e-5, 1e-3, 1e-3, "as evaluated"),  # hardly trained, and served by as many bits
        (0.02, 0.02, 1e-3, "cannot be told"),
        (0.0, 0.0, 0.0, "cannot be told"),  # not trained at all
        (3.0, 3.0, 0.0, "something else"),
    ],
)
def test_a_verdict_by_the_distances(to_run, to_base, apart, verdict):
    assert verdict_on(to_run, to_base, apart) == verdict


def test_the_only_adapter_needs_no_name(whole, service, server):
    with pytest.raises(ServiceError, match="lists mine, earlier; say which one it is: model='…'"):
        check_served(whole.result, server.base_url, service=service)
    del server.serves["earlier"]
    # Without a path, the usual one is meant.
    found = check_served(whole.result, server.base_url.removesuffix("/v1"), service=service, rows=3)
    assert (found.verdict, found.model, len(found.rows)) == ("as evaluated", "mine", 3)


def test_the_command_says_it_and_its_exit_code_too(whole, server, local_service, key, capsys):
    words = ["check-served", str(whole.run.path), server.base_url, "--model", "mine", "--service"]
    assert main([*words, local_service.base_url]) == 0
    server.serves["mine"] = BASE
    assert main([*words, local_service.base_url]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [" is as evaluated: " in said[0], " is the base model, without the adapter: " in said[1]] == [True, True]
    assert main(["check-served", str(whole.run.path), server.base_url, "--model", "other"]) == 2
    assert "The model `other` does not exist" in capsys.readouterr().err


def bent(change):
    """An answer that is as it should be, but for what `change` makes of its log-probabilities, in either form."""

    def bend(answer):
        choice = answer["choices"][0]
        if choice.get("prompt_logprobs"):
            choice["prompt_logprobs"] = change(choice["prompt_logprobs"])
        if choice["logprobs"]:
            choice["logprobs"] = {"token_logprobs": change(choice["logprobs"]["token_logprobs"])}
        return 200, answer

    return bend


def as_other_tokens(values):
    """Tokens that no vocabulary has; of an echo, which does not name them, nothing."""
    return [values[0], *({"1000000": value} if isinstance(value, dict) else None for value in values[1:])]


BAD_ANSWERS = {
    "no log-probabilities": (lambda answer: (200, {"choices": [{"text": "…"}]}), "it lacks what was asked for"),
    "too few": (bent(lambda values: values[:-5]), r"it was sent \d+ tokens, and is about \d+"),
    "too many": (bent(lambda values: [*values, *values[-2:]]), r"it was sent \d+ tokens, and is about \d+"),
    "one more read": (
        lambda answer: (200, answer | {"usage": {"prompt_tokens": 1 + answer["usage"]["prompt_tokens"]}}),
        r"it was sent \d+ tokens, and is about \d+",
    ),
    "a hole": (bent(lambda values: [*values[:3], None, *values[4:]]), "it lacks log-probabilities of tokens"),
    "other tokens": (bent(as_other_tokens), "it lacks log-probabilities of tokens"),
    "infinite": (
        lambda answer: (200, re.sub(r"-\d[\d.e-]*", "-1e999", json.dumps(answer), count=1).encode()),
        "it lacks log-probabilities of tokens",
    ),
    "no choice": (lambda answer: (200, {"choices": []}), "it lacks what was asked for"),
    "a list": (lambda answer: (200, [answer]), "it lacks what was asked for"),
    "no JSON": (lambda answer: (200, b"<html>Welcome</html>"), "cannot be used"),
    "deep": (lambda answer: (200, b"[" * 100_000), "cannot be used"),
    "huge": (lambda answer: (200, b" " * (3 << 20)), "it has more than .* bytes"),
    "an error": (lambda answer: (500, {"error": {"message": "No memory\x1b\n  line 1"}}), r"answers 500 \(No memory"),
    "a refusal": (lambda answer: (400, {"detail": [{"loc": ["body"]}]}), r"answers 400 \(.*body"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_says_nothing_is_told_in_a_sentence(name, checked, server):
    server.bend, sentence = BAD_ANSWERS[name]
    with pytest.raises(ServiceError, match=sentence) as raised:
        checked()
    assert str(raised.value).isprintable() and server.base_url in str(raised.value)
    # Both forms were asked for.
    assert [path for path, _ in server.seen] == ["/v1/completions"] * 2


def test_what_is_not_there_is_one_sentence(whole, service, server):
    with pytest.raises(
        ServiceError, match=r"answers 404 \(The model `other` does not exist\); correct the model's name"
    ):
        check_served(whole.result, server.base_url, "other", service=service)
    with pytest.raises(ServiceError, match=r"/v2/completions: answers 404 \(Not Found\)"):
        check_served(whole.result, server.base_url.replace("/v1", "/v2"), "mine", service=service)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(ServiceError, match=f"{nowhere}/completions: does not answer .*start the server"):
        check_served(whole.result, nowhere, "mine", service=service)
    server.headers = {"Content-Length": "50"}
    with pytest.raises(ServiceError, match="cannot be used"):
        check_served(whole.result, server.base_url, "mine", service=service)


@pytest.mark.parametrize("beginning", [HEAD, CHUNK])
def test_an_answer_that_comes_to_no_end_is_given_up(whole, service, beginning, monkeypatch):
    monkeypatch.setattr(openai_server, "_ANSWER_SECONDS", 0.3)
    with Dripping(beginning) as dripping, pytest.raises(ServiceError, match="does not answer .no answer within 0.3 s"):
        check_served(whole.result, dripping.base_url, service=service)


def test_a_key_goes_to_its_server_alone(checked, server, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-Hosted-Hosted-Hosted")
    server.key = KEY
    with pytest.raises(ServiceError, match=f"answers 401 .*its key is looked for in {VARIABLE}"):
        checked()
    monkeypatch.setenv(VARIABLE, KEY)
    assert checked(rows=1).verdict == "as evaluated"
    assert {key for _, key in server.seen} == {None, f"Bearer {KEY}"}
    monkeypatch.setenv("OTHER_TOKEN", f"{KEY}\n")
    with pytest.raises(ServiceError, match="OTHER_TOKEN: is no key"):
        checked(key_env="OTHER_TOKEN")


def test_a_redirect_is_not_followed(checked, server, adapters, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    server.headers = {"Location": server.base_url.replace("/v1", "/elsewhere")}
    server.bend = lambda answer: (307, answer)
    with pytest.raises(ServiceError, match="answers 307 .*it redirects to http.*/elsewhere, which is not followed"):
        checked()
    assert {path for path, _ in server.seen} == {"/v1/completions"}


def test_no_key_is_sent_where_it_can_be_read(monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("TINKER_API_KEY", "tml-Hosted-Hosted-Hosted")
    with pytest.warns(UserWarning, match="is plain HTTP: .* no key is sent"):
        openai_server.OpenAIServer("http://gpu.example:8000", VARIABLE)
    expected = {
        "http://gpu.example/v1": None,
        "https://gpu.example/v1": KEY,
        "http://127.0.0.1:8000/v1": KEY,
        f"{hosted_address()}/oai/api/v1": "tml-Hosted-Hosted-Hosted",
    }
    assert {url: key_of(url, VARIABLE)[0] for url in expected} == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "tinker"}, "url: expected a server's address"),
        ({"url": "localhost:8000"}, "url: expected a server's address"),
        ({"url": f"http://me:{KEY}@127.0.0.1/v1"}, "url: expected a server's address"),
        ({"key_env": "TINKER_API_KEY"}, "key_env: expected the name of an environment variable"),
        ({"rows": 0}, "rows: expected a whole number, at least 1, received 0"),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_sentence(options, sentence, whole):
    with pytest.raises(ConfigError, match=sentence) as raised:
        check_served(whole.result, **{"url": "http://127.0.0.1:1/v1"} | options)
    assert KEY not in str(raised.value)


def test_a_run_without_a_checkpoint_or_without_its_data(whole, service, server, config, tmp_path):
    with pytest.raises(RunDirectoryError, match="has no checkpoint"):
        check_served(tmp_path, server.base_url, "mine", service=service)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(whole.run.state, moved)
    text = whole.run.config.read_text(encoding="utf-8").replace(str(config.data_dir), str(tmp_path / "nowhere"))
    (moved / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="nowhere"):
        check_served(moved, server.base_url, "mine", service=service)
    # Nor is code imported that the directory names; with a plan of one's own there is no need for it.
    (moved / "config.yaml").write_text(text.replace("format: auto", "format: nowhere:found"), encoding="utf-8")
    with pytest.raises(ConfigError, match="nowhere:found is code, which is not imported"):
        check_served(moved, server.base_url, "mine", service=service)
    # Where there is no validation set, rows of the training set are taken.
    data = tmp_path / "data"
    shutil.copytree(config.data_dir, data)
    (data / "valid.jsonl").unlink()
    plan = prepare(dataclasses.replace(config, data_dir=data, early_stopping_patience=0))
    found = check_served(moved, server.base_url, "mine", service=service, preparation=plan)
    assert found.verdict == "as evaluated" and len(found.rows) == 20
    assert all(math.isfinite(row[1]) for row in found.rows)
