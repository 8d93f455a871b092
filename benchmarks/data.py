"""Rendering beside the tokenizer's own batch encoding; many short chats prepared, and a gigabyte started."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import alternate, medians, say, table

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.renderers import as_renderer
from tinker_utils.data.template import Tokenizer
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.plan.preparing import prepare

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "train.jsonl"
# Words in the prompt and in the answer, and rows of such a file.
SHAPES = {
    "single words": (1, 1, 6000),
    "short turns": (8, 4, 6000),
    "prompts ten times the answers": (300, 30, 600),
    "answers ten times the prompts": (30, 300, 600),
}
ROUNDS, TOGETHER = 5, 500
LARGE_BYTES, VALID_ROWS = 10**9, 200
SHORT_CHATS = 20_000
STEPS = 500


def main() -> None:
    """Print this section of RESULTS.md; with a directory as argument, measure a start on it instead."""
    if len(sys.argv) > 1:
        print(json.dumps(start(Path(sys.argv[1]))))
        return
    print("## Data: `benchmarks/data.py`\n")
    rows = [(name, *rendering(*shape)) for name, shape in SHAPES.items()]
    print(table(("rows", "MB of text", "tokenizer, s", "rendering, s", "ratio"), rows))
    print(
        "\nThe tokenizer encodes the rendered texts by one call for each five hundred. Rendering starts at the file"
        " and ends at tokens and weights: it reads, parses, applies the chat template to prompts and answers, and"
        " encodes.\n"
    )
    print(table(("short chats", "prepared, s", "wanted"), [(f"{SHORT_CHATS:,}", short_chats(), "at most 6")]))
    print("\nFrom `prepare` on a file of one-line questions and answers to all examples in memory.\n")
    print(table(("a chat file of 1 GB", ""), list(large().items())))
    print(
        "\nThe start is from `prepare` to the first batch, once everything is imported and the tokenizer loaded: each"
        " line checked, order and number of steps fixed. Memory is the process's resident peak (VmHWM) over"
        f" {STEPS} steps' batches, with the SDK imported."
    )


def rendering(prompt_words: int, answer_words: int, rows: int) -> tuple[float, float, float, float]:
    """(MB of text, seconds of the tokenizer, seconds of rendering, their ratio) of a file of such rows."""
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.jsonl"
        path.write_bytes(b"".join(lines(prompt_words, answer_words, rows)))
        chats = ChatIndex(path).conversations(range(rows))
        texts = [tokenizer.apply_chat_template(list(chat.messages), tokenize=False) for chat in chats]
        seconds = medians(
            alternate(
                {
                    "tokenizer": lambda: timed(lambda: encode_texts(texts, tokenizer)),
                    "rendering": lambda: timed(lambda: render(path, tokenizer)),
                },
                ROUNDS,
            )
        )
    size = sum(len(text.encode()) for text in texts) / 1e6
    return size, seconds["tokenizer"], seconds["rendering"], seconds["rendering"] / seconds["tokenizer"]


def encode_texts(texts: list[str], tokenizer: Tokenizer) -> None:
    """The peer: nothing but the tokenizer."""
    for begin in range(0, len(texts), TOGETHER):
        tokenizer(texts[begin : begin + TOGETHER], add_special_tokens=False)


def render(path: Path, tokenizer: Tokenizer) -> None:
    """This project."""
    chats, renderer = ChatIndex(path), as_renderer(tokenizer)
    for begin in range(0, len(chats), TOGETHER):
        renderer.encode(chats.conversations(range(len(chats))[begin : begin + TOGETHER]))


def timed(work) -> float:  # noqa: ANN001
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def short_chats() -> float:
    """Return seconds in which many short chats are prepared, the tokenizer loaded."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "train.jsonl").write_bytes(b"".join(lines(12, 8, SHORT_CHATS)))
        (Path(place) / "valid.jsonl").write_bytes(b"".join(lines(12, 8, VALID_ROWS, seed=1)))
        config = TrainingConfig(service="local", model="tiny", data_dir=Path(place))
        tokenizer = load_tokenizer(config)
        return timed(lambda: prepare(config, tokenizer))


def large() -> dict[str, float]:
    """Return what a run on a file of a gigabyte takes to start, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "data"
        directory.mkdir()
        say("writing a gigabyte")
        with (directory / "train.jsonl").open("wb") as file:
            while file.tell() < LARGE_BYTES:
                file.writelines(lines(150, 50, 10_000, seed=file.tell()))
        (directory / "valid.jsonl").write_bytes(b"".join(lines(150, 50, VALID_ROWS, seed=1)))
        run = subprocess.run([sys.executable, __file__, str(directory)], stdout=subprocess.PIPE, check=True)
    started: dict[str, float] = json.loads(run.stdout)
    return started


def start(directory: Path) -> dict[str, float]:
    """Return what a run on `directory` takes until its first batch is there, and over its first steps."""
    began = time.perf_counter()
    import tinker  # noqa: F401  (a trainer has it in memory)

    config = TrainingConfig(service="local", model="tiny", data_dir=directory, max_seq_length=512)
    tokenizer = load_tokenizer(config)
    imported, began = time.perf_counter() - began, time.perf_counter()
    plan = prepare(config, tokenizer)
    plan.batches.batch(1)
    started, began = time.perf_counter() - began, time.perf_counter()
    for step in range(1, STEPS + 1):
        plan.batches.batch(step)
    return {
        "examples": len(plan.train.examples),
        "imports and tokenizer, s": imported,
        "start, s": started,
        f"batches of {STEPS} steps, s": time.perf_counter() - began,
        "peak of memory, MB": peak_megabytes(),
    }


def lines(prompt_words: int, answer_words: int, rows: int, seed: int = 0) -> Iterator[bytes]:
    """Chat lines of the sample's words: a fifth in three turns, some with words that are not English, and emoji."""
    choose = random.Random(seed)
    messages = [m for line in SAMPLE.read_text(encoding="utf-8").splitlines() for m in json.loads(line)["messages"]]
    words = sorted({word for message in messages for word in message["content"].split()})
    words += ["naïve", "漢字", "🜂", "über", "3.14", "\n\n"]
    for _ in range(rows):
        turns = []
        for _ in range(3 if choose.random() < 0.2 else 1):
            for role, count in (("user", prompt_words), ("assistant", answer_words)):
                length = max(1, round(choose.lognormvariate(0, 0.4) * count))
                turns.append({"role": role, "content": " ".join(choose.choices(words, k=length))})
        yield json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n"


def peak_megabytes() -> float:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
