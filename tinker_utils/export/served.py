"""Is what is served what was evaluated? Validation rows, as a server sees them and as the run's service does.

A server may load an adapter, list it, and answer with the base model all the same. Only the log-probabilities tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.redaction import one_sentence, quoted
from tinker_utils.basics.table import Table
from tinker_utils.batching import Example
from tinker_utils.config.loading import load_config_from_yaml, load_run_config
from tinker_utils.errors import ConfigError
from tinker_utils.export.adapter import best_checkpoint, service_of
from tinker_utils.export.openai_server import OpenAIServer
from tinker_utils.plan.plan import Plan
from tinker_utils.run.figures import number
from tinker_utils.run.state import TrainingResult
from tinker_utils.service.client import Service
from tinker_utils.training.resuming import prepared

Verdict = Literal["as evaluated", "the base model", "something else", "cannot be told"]

# What is served is the run's, or the base model's, within this share of the way between the two…
_NEAR = 0.25
# … and within these nats per token, which are what 16 bits or fewer make of the same weights in another program.
_ROUNDING = 0.1
_SENTENCES: dict[Verdict, str] = {
    "as evaluated": "is as evaluated",
    "the base model": "is the base model, without the adapter",
    "something else": "is something else than what was evaluated, and than the base model",
    "cannot be told": "cannot be told from either: rounding may make as much of a difference as the adapter does",
}


@dataclass(frozen=True)
class ServedCheck:
    """What a server was found to serve.

    Attributes:
        verdict: `as evaluated`, `the base model`, `something else`, or `cannot be told`.
        model: the name that was asked for.
        url: where.
        to_run: mean absolute difference between the served log-probabilities and the run's, in nats per completion
            token.
        to_base: the same between the served ones and the base model's.
        apart: the same between the run's and the base model's.
        rows: of each row that was compared, its completion tokens, and its loss in nats per token: as served, in the
            run, and of the base model.
    """

    verdict: Verdict
    model: str
    url: str
    to_run: float
    to_base: float
    apart: float
    rows: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        tokens = sum(row[0] for row in self.rows)
        return one_sentence(
            f"{self.model} at {self.url} {_SENTENCES[self.verdict]}: {number(self.to_run)} nats per completion token "
            f"from the run, {number(self.to_base)} from the base model, which are {number(self.apart)} apart "
            f"({tokens:,.0f} tokens of {len(self.rows):,} rows)."
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = tuple((f"row {n}", f"{row[0]:,.0f}", *map(number, row[1:])) for n, row in enumerate(self.rows, 1))
        return Table(("", "completion tokens", "served", "run", "base model"), rows, str(self))._repr_html_()


def check_served(
    run: TrainingResult | Path | str,
    url: str,
    model: str | None = None,
    *,
    service: Service | str | None = None,
    preparation: Plan | None = None,
    rows: int = 20,
    key_env: str = "TINKER_UTILS_SERVED_KEY",
) -> ServedCheck:
    """Compare what an OpenAI-compatible server gives validation rows with what the run's best checkpoint does.

    The rows are sent as tokens: the weights are compared, not the server's chat template. The run's service evaluates
    them twice, at the best checkpoint and with the base model, which is billed as such.

    Args:
        run: what `fit` returned, or a run's directory.
        url: the server's address, such as http://localhost:8000/v1.
        model: the name that it serves the adapter by; its only adapter, or only model, if None.
        service: as in `export_adapter`.
        preparation: what `prepare(config)` gave, if it was called already, or the run's data have moved.
        rows: how many, spread evenly over the validation set, or over the training set where there is none.
        key_env: the environment variable that holds the server's key, if it wants one. The hosted service is given its
            own key, and plain HTTP beyond this machine none.

    Raises:
        ConfigError: an argument cannot be used.
        RunDirectoryError: the run has no checkpoint yet.
        ServiceError: the server cannot be reached, does not know the model or gives no log-probabilities of a prompt;
            or the run's service, as `export_adapter` says.
        DataError, RenderingError: the run's data cannot be read or rendered.
    """
    if not isinstance(rows, int) or rows < 1:
        raise ConfigError(f"rows: expected a whole number, at least 1, received {quoted(rows)}.")
    server = OpenAIServer(url, key_env)
    files, checkpoint = best_checkpoint(run)
    name = server.only_adapter() if model is None else model
    # Where the user's own plan has the data, nothing that the directory names is read or imported.
    config = load_run_config(files.config) if preparation else load_config_from_yaml(files.config, "run")
    planned = preparation.config if preparation else config
    examples = _spread(prepared(planned, preparation, files.read_state()), rows)
    served = [server.logprobs(name, example.tokens.tolist()) for example in examples]
    with service_of(files, service) as own:
        trained, base = own.logprobs(examples, config, checkpoint), own.logprobs(examples, config)
    return _compared(name, server.url, examples, (served, trained, base))


def _spread(plan: Plan, count: int) -> list[Example]:
    """Return the last example of so many conversations, or fewer where there are fewer."""
    conversations = plan.valid.by_conversation if plan.valid else plan.batches.conversations
    count = min(count, len(conversations))
    found = (conversations[place * len(conversations) // count] for place in range(count))
    return [examples[-1] for examples in found if examples]


def _compared(
    model: str, url: str, examples: Sequence[Example], logprobs: Sequence[Sequence[NDArray[np.float64]]]
) -> ServedCheck:
    """Return the check of log-probabilities that were served, the run's and the base model's, each by example."""
    counted = [[row[example.weights > 0] for row, example in zip(rows, examples, strict=True)] for rows in logprobs]
    served, run, base = map(np.concatenate, counted)
    to_run, to_base, apart = (
        float(np.abs(one - other).mean()) for one, other in ((served, run), (served, base), (run, base))
    )
    rows = tuple((len(row[0]), *(-float(values.mean()) for values in row)) for row in zip(*counted, strict=True))
    return ServedCheck(verdict_on(to_run, to_base, apart), model, url, to_run, to_base, apart, rows)


def verdict_on(to_run: float, to_base: float, apart: float) -> Verdict:
    """Return what is served, by its distances from the run and from the base model, which are `apart`: all in nats.

    Where it is at neither, and the nearer one is as near as rounding may take it, the two are too much alike to tell.
    """
    near = min(_NEAR * apart, _ROUNDING)
    if to_run < near:
        return "as evaluated"
    if to_base < near:
        return "the base model"
    return "cannot be told" if min(to_run, to_base) < _ROUNDING else "something else"
