"""Input that once got past the project's own errors, or could: each case is one that no reader may fall over."""

from __future__ import annotations

import json
import time

import pytest

from tinker_utils.basics.strict_json import parse_json
from tinker_utils.comparison import table
from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.config.yaml import parse_yaml
from tinker_utils.data.files import read_conversations
from tinker_utils.errors import ConfigError, DataError, MetricsError, RunDirectoryError, TinkerUtilsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.metrics import read_metrics
from tinker_utils.run.rollback import roll_back_metrics, roll_back_samples
from tinker_utils.run.state import Activity, RunState
from tinker_utils.run.status import RunFollower
from tinker_utils.views.html import samples_html, status_html

DEEP = "[" * 800 + "]" * 800
MISSING = {"a NUL": "a\0b", "half a pair": "a\ud800b", "a long name": "x" * 5000, "nobody's home": "~no-such-user/x"}


def nested_aliases(levels: int) -> str:
    """A list of lists of lists …: ten to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        nested_aliases(9),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "!!float ''",
        "!!int ''",
        "!!timestamp x",
        "!!binary x",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!python/name:os.system x",
        "!<tag:%1B[31m> x",
        "1" * 5000,
        "? [a, b]\n: c",
        DEEP,
        "[" * 500_000,
        "- " * 300_000,
        "{a: " * 100_000,
        "[a, " * 200_000,
    ],
    ids=lambda text: text[:20],
)
def test_yaml_is_refused_in_a_sentence(text):
    began = time.process_time()
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text)
    assert str(refused.value).isprintable()
    assert time.process_time() - began < 20  # billions of values would take hours


def test_yaml_that_is_as_deep_as_allowed_is_read():
    assert parse_yaml("[" * 51 + "]" * 51) is not None
    with pytest.raises(ConfigError, match="line 2: values are nested more than 50 deep"):
        parse_yaml("\n" + "[" * 52 + "]" * 52)


def test_aliases_of_modest_size_are_fine():
    assert parse_yaml("a: &a [x, y]\nb: *a\n") == {"a": ["x", "y"], "b": ["x", "y"]}


@pytest.mark.parametrize("path", MISSING.values(), ids=MISSING)
def test_odd_paths_are_missing_files(path, tmp_path):
    with pytest.raises(ConfigError):
        load_config_from_yaml(path)
    with pytest.raises(ConfigError):
        load_config_from_yaml("configs/training.yaml", "local", {"data.dir": path})
    for read in (read_conversations, read_metrics, table.read_run):
        with pytest.raises(TinkerUtilsError) as refused:
            read(tmp_path / path)
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize("value", [10**5000, "x" * 10**6, "\ud800", "a\nb", "\x1b[31m"], ids=str.__class__)
def test_values_are_refused_in_a_bounded_sentence(value):
    with pytest.raises(ConfigError) as refused:
        TrainingConfig().with_overrides({"training.epochs": value})
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("value", ["\ud800", "a\nb", "\x1b[31m", "\x7f"])
@pytest.mark.parametrize("key", ["model", "data.dir", "output.dir", "service"])
def test_text_that_cannot_be_stored_or_shown_is_no_setting(key, value):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        TrainingConfig().with_overrides({key: value})


def test_an_address_with_a_line_break_is_no_address():
    with pytest.raises(ConfigError, match="service"):
        TrainingConfig(service="http://exa\nmple.org")


def test_a_file_that_is_no_configuration_is_not_read_to_its_end(tmp_path):
    (tmp_path / "large.yaml").write_text("# \n" * 400_000)
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        load_config_from_yaml(tmp_path / "large.yaml")


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": ' + DEEP + ', "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x", "name": "\\ud800"}]}',
        '{"messages": [{"role": "user", "content": "\\uDC00"}]}',
        '{"messages": [{"role": "' + "x" * 100_000 + '", "content": ""}]}',
        json.dumps({f"key {n}": 1 for n in range(10_000)}),
        "1" * 5000,
    ],
    ids=["deep", "surrogate", "upper case surrogate", "long role", "many keys", "long number"],
)
def test_chat_lines_are_refused_in_a_bounded_sentence(tmp_path, line):
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(DataError, match="train.jsonl:1: ") as refused:
        read_conversations(tmp_path / "train.jsonl")
    assert len(str(refused.value)) < 600


def test_an_escaped_pair_is_a_character(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}')
    assert read_conversations(tmp_path / "train.jsonl")[0].messages[0]["content"] == "\N{GRINNING FACE}"


def test_json_that_is_as_deep_as_allowed_is_read():
    assert parse_json("[" * 100 + "]" * 100) is not None
    with pytest.raises(ValueError, match="over 100 levels"):
        parse_json("[" * 102 + "]" * 102)


@pytest.mark.parametrize("status", [5, ["x"], {"a": 1}, "\x1b[31m", None])
def test_a_log_may_say_anything_of_its_end(tmp_path, status):
    records = [{"type": "train", "step": 1, "train_loss": 1.0}, {"type": "end", "status": status}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    table.compare([table.read_run(tmp_path)])


def test_settings_of_other_programs_may_be_deep_and_long(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "train_mean_nll": 1.0}\n')
    (tmp_path / "config.json").write_text(f'{{"model_name": "{"x" * 10**6}", "lora_rank": {DEEP}}}')
    with pytest.raises(MetricsError, match="config.json"):
        table.read_run(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_name": "{"x" * 10**6}"}}')
    assert len(table.read_run(tmp_path).settings["model"]) < 400


@pytest.mark.parametrize("since", [1e300, -1e300, 0.0])
def test_a_run_may_say_anything_of_time(tmp_path, since):
    run = RunDirectory(tmp_path)
    run.write_state(RunState(activity=Activity("paused", since)))
    run.request_pause()
    times = [{"type": "train", "step": n, "train_loss": 1.0, "timestamp": n * 1e307} for n in (1, 9)]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in times))
    follower = RunFollower(run)
    follower.poll()
    assert follower.status().sentence.isprintable()
    status_html(follower.status(), "nats/token")


def test_samples_may_hold_anything(tmp_path):
    run = RunDirectory(tmp_path)
    run.samples.write_text(f'{{"step": 1, "prompt": {DEEP}}}\n{{"step": {{}}, "completion": [1, {{"a": null}}]}}\n')
    follower = RunFollower(run)
    follower.poll()
    assert "&#x27;a&#x27;: None" in samples_html(follower.samples)


@pytest.mark.parametrize("kind", [["train"], {"a": 1}, None, 5])
def test_a_record_of_no_kind_stays_when_a_run_goes_back(tmp_path, kind):
    foreign = json.dumps({"type": kind, "step": 9})
    (tmp_path / "metrics.jsonl").write_text('{"type": "train", "step": 1}\n' + foreign + "\n")
    roll_back_metrics(tmp_path / "metrics.jsonl", None, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == foreign + "\n"


POINT = {"path": "tinker://x/weights/y", "progress": {}, "early_stopping": {}, "checkpoints": {}}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"format": 3},
        {"format": "1"},
        {"format": 2, "resume_points": 5},
        {"format": 1, "resume_points": 5.0},
        {"format": 2, "resume_points": [POINT | {"path": ["x"]}]},
        {"format": 2, "resume_points": [POINT | {"checkpoints": []}]},
        {"format": 1, "resume_points": [POINT | {"early_stopping": {"anchor": "x"}}]},
        {"format": 1, "resume_points": [POINT | {"progress": {"step": "3"}}, POINT]},
        {"format": 2, "resume_points": [POINT | {"progress": {"step": True}}]},
        {"format": 2, "resume_points": [POINT | {"progress": {"step": 10**30}}]},
        {"format": 2, "resume_points": [POINT | {"progress": {"step": -1}}]},
        {"format": 1, "left_out_steps": {"a": 1}},
        {"format": 2, "status": ["completed"]},
        {"format": 2, "status": "resting"},
        {"format": 2, "activity": [], "plan": 3, "progress": "x"},
        {"format": 2, "status": "failed", "reason": {"a": "\x1b[31m" * 10_000}},
        {"format": 2, "plan": {"total_steps": 1e308, "patience": -3}, "progress": {"step": -1e308}},
        {"format": 2, "plan": {"expected_cost_usd": float("inf")}, "progress": {"cost_usd": float("-inf")}},
    ],
    ids=lambda state: str(state)[:80],
)
def test_a_state_that_no_run_wrote_is_refused_in_one_sentence_and_shown_as_damaged(tmp_path, state):
    run = RunDirectory(tmp_path)
    run.state.write_text(json.dumps(state))
    with pytest.raises(RunDirectoryError, match=r"run\.json: .*start a new run in another directory") as refused:
        run.read_state()
    assert len(str(refused.value)) <= 1000 and str(refused.value).isprintable()
    follower = RunFollower(run)
    follower.poll()
    assert "run.json: " in follower.status().sentence
    status_html(follower.status(), "nats/token")


def test_lines_of_samples_that_cannot_be_read_do_not_stop_a_run_from_going_back(tmp_path):
    samples = tmp_path / "samples.jsonl"
    good = '{"step": 1, "completion": "a\u2028b"}\n'.encode()
    foreign = b"\xff\n[]\n{}\n" + b'{"step": "1"}\n'
    samples.write_bytes(good + foreign + b'{"step": 2}\n' + b'{"step": 1}')
    roll_back_samples(samples, 1)
    assert samples.read_bytes() == good + foreign
