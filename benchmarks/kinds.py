"""The same conversations in every kind of file and in several formats: seconds until the first batch, and memory."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import say, table

from data import lines, peak_megabytes
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.plan.preparing import prepare

ROWS, TOGETHER = 440_000, 10_000
SOURCE = "source.jsonl"


def main() -> None:
    """Print this section of RESULTS.md; with a file as argument, measure a start on it instead."""
    if len(sys.argv) > 1:
        print(json.dumps(start(sys.argv[1])))
        return
    print("## Kinds of files: `benchmarks/kinds.py`\n")
    measured = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        say("writing a gigabyte")
        with (Path(place) / SOURCE).open("wb") as file:
            for seed in range(ROWS // TOGETHER):
                file.writelines(lines(150, 50, TOGETHER, seed=seed))
        for name, (suffixes, write) in KINDS.items():
            say(name)
            path = Path(place) / f"train{suffixes}"
            write(path)
            run = subprocess.run([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, check=True)
            measured.append((name, round(path.stat().st_size / 1e6), *json.loads(run.stdout)))
            path.unlink()
    print(table((f"{ROWS:,} conversations in", "MB", "start, s", "peak of memory, MB"), measured))
    print(
        "\nThe start is from `prepare` to the first batch, once everything is imported and the tokenizer loaded. Memory"
        " is the process's resident peak (VmHWM), with the SDK imported."
    )


def start(file: str) -> tuple[float, float]:
    """Return the seconds until a run on a file has its first batch, and the most memory that this took."""
    import tinker  # noqa: F401  (a trainer has it in memory)

    config = TrainingConfig(service="local", model="tiny", train=file, max_seq_length=512)
    tokenizer = load_tokenizer(config)
    began = time.perf_counter()
    prepare(config, tokenizer).batches.batch(1)
    return time.perf_counter() - began, peak_megabytes()


def rows(path: Path) -> Iterator[list[dict[str, str]]]:
    """Yield the messages of each conversation that a file is to have."""
    with path.with_name(SOURCE).open("rb") as file:
        yield from (json.loads(line)["messages"] for line in file)


def written(row: Callable[[list[dict[str, str]]], Any], opened: Any = Path.open, between: str = "\n") -> Any:
    """Return what writes JSON of each conversation to a file; an array, where a comma stands between them."""

    def write(path: Path) -> None:
        with opened(path, "wt", encoding="utf-8") as file:
            file.write("[" if between == "," else "")
            file.writelines(
                (between if i else "") + json.dumps(row(messages), ensure_ascii=False)
                for i, messages in enumerate(rows(path))
            )
            file.write("]" if between == "," else "\n")

    return write


def separated(path: Path) -> None:
    """Write CSV of the first prompts and answers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows((messages[0]["content"], messages[1]["content"]) for messages in rows(path))


def tabled(write: Callable[[Any, Path], None]) -> Callable[[Path], None]:
    """Return what has a table of the conversations written."""

    def write_table(path: Path) -> None:
        import pyarrow

        write(pyarrow.Table.from_pylist([{"messages": messages} for messages in rows(path)]), path)

    return write_table


def parquet(content: Any, path: Path) -> None:
    """Write Parquet as pyarrow does by itself: in one row group, compressed by Snappy."""
    from pyarrow.parquet import write_table

    write_table(content, path)


def arrow(content: Any, path: Path) -> None:
    """Write Arrow, uncompressed, in one record batch."""
    import pyarrow

    with pyarrow.ipc.new_file(str(path), content.schema) as writer:
        writer.write_table(content)


def feather(content: Any, path: Path) -> None:
    """Write Feather as pyarrow does by itself: in batches of 65,536 rows, compressed by LZ4."""
    from pyarrow.feather import write_feather

    write_feather(content, path)


def zstandard(path: Path, mode: str, **options: str) -> Any:
    """Open a file to write to it compressed."""
    from zstandard import open as opened

    return opened(path, mode, **options)


def _messages(messages: list[dict[str, str]]) -> Any:
    return {"messages": messages}


def _turns(messages: list[dict[str, str]]) -> Any:
    speakers = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": speakers[each["role"]], "value": each["content"]} for each in messages]}


KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "JSONL, `messages`": (".jsonl", written(_messages)),
    "JSONL, ShareGPT": (".jsonl", written(_turns)),
    "JSONL, Alpaca": (".jsonl", written(lambda m: {"instruction": m[0]["content"], "output": m[1]["content"]})),
    "JSONL, plain text": (".jsonl", written(lambda m: {"text": m[0]["content"] + m[1]["content"]})),
    "a JSON array": (".json", written(_messages, between=",")),
    "JSONL in gzip": (".jsonl.gz", written(_messages, gzip.open)),
    "JSONL in Zstandard": (".jsonl.zst", written(_messages, zstandard)),
    "CSV, prompt and completion": (".csv", separated),
    "Parquet, one row group, compressed": (".parquet", tabled(parquet)),
    "Arrow, one record batch": (".arrow", tabled(arrow)),
    "Feather, compressed": (".feather", tabled(feather)),
}

if __name__ == "__main__":
    main()
