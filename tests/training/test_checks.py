"""What is looked at before anything is spent, on real data and against the real embedded server."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
from support.small_runs import records

from tinker_utils import preflight
from tinker_utils.basics.numbers import short
from tinker_utils.config.settings import LoraConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.rendering import RenderedSet
from tinker_utils.errors import ConfigError, DataError, ResumeError, RunDirectoryError, ServiceError
from tinker_utils.plan.cost import Prices
from tinker_utils.plan.preparing import prepare
from tinker_utils.training.checks import Check, PreflightReport
from tinker_utils.training.checks_of_data import Named, duplicates
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")


def found(report: PreflightReport, name: str) -> list[tuple[str, str]]:
    return [(check.status, check.sentence) for check in report.checks if check.name == name]


def statuses(report: PreflightReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


@pytest.fixture
def quiet(config):
    """Nothing to warn of: the embedded service, and early stopping."""
    return dataclasses.replace(config, service="local", early_stopping_patience=3)


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of the data, to be spoiled."""
    return shutil.copytree(data, tmp_path / "own")


def test_a_run_without_cautions(quiet, run):
    report = preflight(quiet, run.path)
    assert statuses(report) == dict.fromkeys(
        ("data", "format", "example", "tokenizer", "steps", "directory", "duplicates", "contents", "lengths",
         "adapter", "settings", "service", "evaluation", "cost", "disk"), "ok",
    )  # fmt: skip
    assert found(report, "data") == [("ok", "22 examples for training, 10 for validation.")]
    assert found(report, "steps") == [("ok", "12 in 2 epochs; 6 evaluations.")]
    assert report.warnings == []
    report.raise_for_failures()
    assert not run.path.exists(), "it writes nothing"


def test_its_text_depends_on_the_run_alone(quiet, run, tmp_path):
    first, second = preflight(quiet, run.path), preflight(quiet, tmp_path / "other", preparation=prepare(quiet))
    assert str(first) == str(second) == repr(second)
    assert str(tmp_path) not in str(first) + first._repr_html_()
    assert str(first).splitlines()[1] == "data        ok       22 examples for training, 10 for validation."


def test_what_was_found_is_escaped():
    report = PreflightReport((Check("<data>", "warn", "<script>&"),))
    assert "<script>" not in report._repr_html_()
    assert "&lt;script&gt;&amp;" in report._repr_html_()


def test_leaks_and_duplicates_are_counted(quiet, own_data, run):
    train = (own_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    shouted = json.loads(train[0])
    shouted["messages"][-2]["content"] = f"  {shouted['messages'][-2]['content'].upper()} "
    other = json.loads(train[7])
    other["messages"][-1]["content"] = "something else"
    another_answer = json.dumps(other)
    spoiled = {
        "train.jsonl": [*train, train[3], train[3], train[4]],
        "valid.jsonl": [json.dumps(shouted), *(own_data / "valid.jsonl").read_text(encoding="utf-8").splitlines()],
        "test.jsonl": [train[5], train[6], json.dumps({"messages": shouted["messages"][-1:]}), another_answer],
    }
    for name, lines in spoiled.items():
        (own_data / name).write_text("\n".join(lines), encoding="utf-8")
    checks = found(preflight(dataclasses.replace(quiet, data_dir=own_data), run.path), "duplicates")
    of = "25 conversations in train.jsonl"
    leak = "their loss does not measure performance on unseen data."
    assert checks == [
        ("warn", f"3 of {of} repeat an earlier one exactly (the first: train.jsonl:23, as train.jsonl:4)."),
        ("warn", "1 of 11 conversations in valid.jsonl are also in 25 conversations in train.jsonl, the same but for "
         f"case and white space (the first: valid.jsonl:1, as train.jsonl:1): {leak}"),
        ("warn", f"2 of 4 conversations in test.jsonl are also in {of}, exactly the same (the first: test.jsonl:1, as "
         f"train.jsonl:6): {leak}"),
        ("warn", f"1 of 4 conversations in test.jsonl have the same prompt as one of {of} with another answer (the "
         "first: test.jsonl:4, as train.jsonl:8): the model is trained on what they ask."),
    ]  # fmt: skip


def test_several_training_sources_are_looked_through_as_one():
    def named(name, *pairs):
        talks = (({"role": "user", "content": one}, {"role": "assistant", "content": other}) for one, other in pairs)
        return Named(name, [Conversation(talk, f"{name}:{i}") for i, talk in enumerate(talks, start=1)])

    training = [named("a", ("x", "1"), ("y", "1")), named("b", ("Y", "1"), ("z", "1"))]
    sentences, _ = duplicates(training, [named("v", ("z", "1")), named("w", ("x", "2"))])
    train = "2 conversations in a and 2 conversations in b"
    assert sentences[0] == f"1 of {train} repeat an earlier one but for case and white space (the first: b:1, as a:2)."
    assert sentences[1].startswith(f"1 of 1 conversations in v are also in {train}, exactly the same (the first: v:1, ")
    assert "(the first: w:1, as a:1)" in sentences[2]
    assert len(sentences) == 3


def test_a_test_file_that_cannot_be_read_is_told_and_nothing_more(quiet, own_data, run):
    (own_data / "test.jsonl").write_bytes(b"PK\x03\x04")
    ((status, sentence),) = found(preflight(dataclasses.replace(quiet, data_dir=own_data), run.path), "duplicates")
    assert (status, "a ZIP archive" in sentence) == ("warn", True)
    (own_data / "test.jsonl").unlink()
    for name in ("test.csv", "test.json"):
        (own_data / name).write_text("x", encoding="utf-8")
    ((status, sentence),) = found(preflight(dataclasses.replace(quiet, data_dir=own_data), run.path), "duplicates")
    assert (status, "keep one of them" in sentence) == ("warn", True)


def test_of_a_large_file_it_says_how_far_it_was_looked_through(quiet, run, monkeypatch):
    plan = prepare(quiet)
    monkeypatch.setattr("tinker_utils.training.checks_of_data._LOOKED_THROUGH", 500)
    ((status, sentence),) = found(preflight(quiet, run.path, preparation=plan), "duplicates")
    assert status == "ok"
    assert re.fullmatch(r"No duplicates within the first [1-9] conversations in train.jsonl, nor between .*", sentence)


def test_what_is_cut_and_skipped_is_counted(quiet, run):
    short = dataclasses.replace(quiet, max_seq_length=40)
    train = prepare(short).train
    assert train.cut
    assert train.skipped
    sentences = [sentence for _, sentence in found(preflight(short, run.path), "lengths")]
    assert sentences[0].startswith(f"{train.cut} of {len(train.examples)} examples are longer than 40 tokens")
    assert sentences[1].startswith(f"{train.skipped} training examples are skipped")


def test_broken_data_fail_and_what_can_be_looked_at_still_is(quiet, own_data, run):
    (own_data / "train.jsonl").write_text('{"messages": 3}\n', encoding="utf-8")
    report = preflight(dataclasses.replace(quiet, data_dir=own_data), run.path)
    assert statuses(report) == {
        "data": "fail", "settings": "ok", "service": "ok", "disk": "ok",
    }  # fmt: skip
    with pytest.raises(DataError, match="train.jsonl:1"):
        report.raise_for_failures()


def test_a_model_without_a_tokenizer_fails(quiet, run, tmp_path):
    report = preflight(dataclasses.replace(quiet, model=str(tmp_path)), run.path)
    assert statuses(report)["tokenizer"] == "fail"
    with pytest.raises(ServiceError, match="tokenizer"):
        report.raise_for_failures()


def test_a_server_is_asked_and_a_wrong_key_is_refused(config, run, monkeypatch):
    report = preflight(config, run.path)
    assert found(report, "service") == [("ok", "It answers and accepts the key.")]
    assert any("lora.alpha" in sentence for sentence in report.warnings)
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", "tml-not-the-right-key")
    ((status, sentence),) = found(preflight(config, run.path), "service")
    assert status == "fail"
    assert "(TINKER_UTILS_SERVICE_KEY, unless told otherwise): set it" in sentence
    assert "tml-" not in sentence


def test_a_server_that_is_not_there_and_a_model_that_it_does_not_have(config, run, service, local_service):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = dataclasses.replace(config, service=f"http://127.0.0.1:{unused.getsockname()[1]}")
        ((status, sentence),) = found(preflight(away, run.path), "service")
    assert (status, "does not answer" in sentence) == ("fail", True)
    packaged = prepare(config)
    other = dataclasses.replace(config, model="other/model")
    report = preflight(other, run.path, preparation=dataclasses.replace(packaged, config=other), service=service)
    assert found(report, "service")[0][1].startswith("other/model is not among the")


def test_a_budget_that_cannot_be_kept_forbids_a_hosted_run(config, run, monkeypatch, local_service):
    monkeypatch.setenv("TINKER_BASE_URL", local_service.base_url)
    hosted = dataclasses.replace(config, service="tinker", budget_usd=1.0)
    report = preflight(hosted, run.path)
    assert statuses(report)["cost"] == "fail"
    with pytest.raises(ConfigError, match="training.budget_usd"):
        report.raise_for_failures()
    own = preflight(dataclasses.replace(config, budget_usd=1.0), run.path)
    assert found(own, "cost")[0][0] == "warn"


def test_the_cost_stands_beside_the_budget(config, run, service):
    limited = dataclasses.replace(config, budget_usd=0.5)
    plan = prepare(limited)
    read = plan.forecast.tokens + plan.forecast.evaluations * plan.valid.tokens
    dear = dataclasses.replace(plan, prices=Prices(1e6 / read, 0.0, 0.0))  # a dollar for all that is read
    report = preflight(limited, run.path, preparation=dear, service=service)
    assert found(report, "cost") == [
        ("warn", "All epochs would cost $1.00; the run stops before its cost exceeds $0.50.")
    ]
    rich = dataclasses.replace(limited, budget_usd=2.0)
    report = preflight(rich, run.path, preparation=dataclasses.replace(dear, config=rich), service=service)
    assert found(report, "cost") == [("ok", "At most $1.00.")]


async def test_a_rank_that_the_hosted_service_refuses_ends_it_before_anything_is_sent(config, run):
    """There is no key: a service that was asked anything would be one more failure."""
    hosted = dataclasses.replace(config, service="tinker", lora=LoraConfig(rank=12))
    plan = dataclasses.replace(prepare(config), config=hosted)
    report = preflight(hosted, run.path, preparation=plan, probe=True)
    assert [(check.name, check.sentence) for check in report.checks if check.status == "fail"] == [
        ("settings", "lora.rank: the hosted service takes powers of two, received 12; choose 8 or 16.")
    ]
    with pytest.raises(ConfigError, match="choose 8 or 16"):
        await fit(hosted, run.path, preparation=plan)
    assert not run.path.exists()


def test_the_adapter_stands_beside_what_it_is_to_learn(quiet, run):
    """The packaged model has 9,728 parameters for each rank: 4 layers of 2·256 + 2·192 + 3·512."""
    plan = prepare(quiet)
    tokens = plan.train.completion_tokens
    line = ("ok", f"38.9 k LoRA parameters (rank 4) for {tokens:,} completion tokens.")
    assert found(preflight(quiet, run.path, preparation=plan), "adapter") == [line]
    ample = dataclasses.replace(quiet, lora=LoraConfig(rank=64))
    report = preflight(ample, run.path, preparation=dataclasses.replace(plan, config=ample))
    assert found(report, "adapter")[1] == (
        "warn",
        "Rank 64 has room to memorize 22 examples; 16 is enough for most tasks.",
    )
    many = dataclasses.replace(plan, train=RenderedSet(plan.train.examples * (38_912 // tokens + 1)))
    ((status, line), (also, caution)) = found(preflight(quiet, run.path, preparation=many), "adapter")
    assert (status, also) == ("ok", "warn")
    assert line.endswith(f"{short(many.train.completion_tokens)} completion tokens.")
    assert caution.endswith("; a rank of at least 8 has as many.")


def test_a_full_disk_and_a_directory_that_cannot_be_written(quiet, run, monkeypatch):
    plan = prepare(quiet)
    usage = namedtuple("usage", "total used free")
    for free, status in ((10**6, "fail"), (5 * 10**8, "warn"), (10**11, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(10**12, 0, free))
        assert statuses(preflight(quiet, run.path, preparation=plan))["disk"] == status
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        preflight(quiet, run.path, preparation=plan).raise_for_failures()


def test_it_says_what_becomes_of_the_run_that_is_there(whole, config):
    assert found(preflight(config, whole.run.path), "directory") == [
        ("ok", "Its run has ended; nothing is left to do.")
    ]
    more = dataclasses.replace(config, epochs=3)
    assert found(preflight(more, whole.run.path), "directory") == [("ok", "Its run resumes after step 12.")]
    with pytest.raises(ResumeError, match="training.seed: 0 → 1"):
        preflight(dataclasses.replace(config, seed=1), whole.run.path).raise_for_failures()


def test_several_failures_are_all_told():
    report = PreflightReport((Check.failed("a", DataError("one.")), Check.failed("b", ServiceError("two."))))
    with pytest.raises(DataError, match="one. two."):
        report.raise_for_failures()


async def test_a_run_records_its_cautions_once_and_not_again_what_it_looked_at_before(config, service, run, own_data):
    (own_data / "valid.jsonl").write_text((own_data / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    leaking = dataclasses.replace(config, data_dir=own_data, epochs=1)
    report = preflight(leaking, run.path, service=service)
    await fit(leaking, run.path, service=service)
    notices = [record["message"] for record in records(run, "notice") if record["kind"] == "warning"]
    *before, size = notices
    assert before == report.warnings
    assert "with 22 examples the loss is known to ±" in size, "as the first evaluation shows"
    assert any("22 of 22 conversations in valid.jsonl are also in" in notice for notice in notices)


@pytest.mark.parametrize("spoil", ["data", "key", "service", "settings"])
async def test_a_run_that_cannot_begin_leaves_no_trace(config, run, own_data, monkeypatch, spoil):
    changes = {"data_dir": own_data}
    if spoil == "data":
        (own_data / "valid.jsonl").write_text("{", encoding="utf-8")
    elif spoil == "key":
        monkeypatch.delenv("TINKER_UTILS_SERVICE_KEY")
    elif spoil == "service":
        changes["service"] = "http://127.0.0.1:9"
    else:
        changes["max_seq_length"] = 2
    with pytest.raises((DataError, ServiceError)):
        await fit(dataclasses.replace(config, **changes), run.path)
    assert not run.path.exists()


def test_a_run_that_is_training_elsewhere_is_no_run_to_go_on_with(small_plan, run):
    run.create()
    other = "\n".join(
        [
            "import sys; from tinker_utils.run import RunDirectory",
            "with RunDirectory(sys.argv[1]).lock():",
            "    print(1, flush=True); input()",
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"1\n"
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        (check,) = [
            each
            for each in preflight(small_plan.config, run.path, preparation=small_plan).checks
            if each.name == "directory"
        ]
        assert (check.status, f"process {holder.pid} on" in check.sentence) == ("fail", True)
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before, "nothing is written"
        holder.communicate(b"\n")
    (check,) = [
        each
        for each in preflight(small_plan.config, run.path, preparation=small_plan).checks
        if each.name == "directory"
    ]
    assert check.status == "ok"


@pytest.mark.parametrize(("patience", "said"), [(5, False), (6, True), (0, False)])
def test_patience_that_cannot_run_out_is_said(small_plan, run, patience, said):
    """Six evaluations: the first one always improves, so a patience of 5 runs out with the last one at the earliest."""
    config = dataclasses.replace(small_plan.config, early_stopping_patience=patience)
    plan = dataclasses.replace(small_plan, config=config)
    assert plan.forecast.evaluations == 6
    sentences = [check.sentence for check in preflight(config, run.path, preparation=plan).checks]
    assert any("needs at least 7 evaluations, but only 6 are planned" in sentence for sentence in sentences) is said
