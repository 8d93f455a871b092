"""YAML → a frozen `TrainingConfig`; what does not fit is a `ConfigError` that names the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinker_utils.config.paths import as_path, exists, is_directory, is_file
from tinker_utils.config.rules import (
    ATTENTION_MODULES,
    MLP_MODULES,
    TARGET_MODULES,
    Checked,
    Rule,
    did_you_mean,
    plain,
    rules_of,
    setting,
)
from tinker_utils.errors import ConfigError


@dataclass(frozen=True)
class LoraConfig(Checked):
    """The adapter. The hosted service takes the rank and which groups of modules to train; `local` honours all."""

    rank: int = setting(
        16, "lora.rank", "integer",
        "it bounds what the adapter can learn and memorize, and the hosted service takes powers of two; 16 is enough "
        "for most tasks.",
        low=1, high=1024, group="Adapter",
    )  # fmt: skip
    alpha: int = setting(
        32, "lora.alpha", "integer", "it scales the adapter; twice the rank is the usual choice.",
        low=1, high=4096, group="Adapter", as_metadata=True,
        usual=(1, 256), harm="the adapter is multiplied by alpha / rank, and the loss may rise without end",
    )  # fmt: skip
    dropout: float = setting(
        0.05, "lora.dropout", "number", "it adds noise against memorizing; 0 switches it off.",
        low=0, high=1, open_high=True, group="Adapter", as_metadata=True,
        usual=(0, 0.5), harm="so little of the adapter takes part in a step that it hardly learns",
    )  # fmt: skip
    target_modules: tuple[str, ...] = setting(
        ATTENTION_MODULES + MLP_MODULES, "lora.target_modules", "list of module names",
        f"choose from {', '.join(TARGET_MODULES)}.",
    )  # fmt: skip

    @property
    def train_attn(self) -> bool:
        """Return whether any projection of the attention is trained: Tinker's switch of that name."""
        return bool(set(self.target_modules) & set(ATTENTION_MODULES))

    @property
    def train_mlp(self) -> bool:
        """Return whether any projection of the MLP is trained: Tinker's switch of that name."""
        return bool(set(self.target_modules) & set(MLP_MODULES))

    @property
    def train_unembed(self) -> bool:
        """Return whether the output embedding is trained: Tinker's switch of that name."""
        return "lm_head" in self.target_modules


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """Everything that decides what a run does; each field's rule names its key in the YAML file.

    `base_dir` is no setting: relative paths that don't exist below the current directory are looked for there.
    """

    service: str = setting("tinker", "service", "service", "keys belong in the environment, never here.")
    model: str = setting("Qwen/Qwen3-8B", "model", "text", "give a base model's name, or `tiny` with service: local.")
    lora: LoraConfig = field(default_factory=LoraConfig)
    epochs: int = setting(
        2, "training.epochs", "integer", "it is the number of passes over the data; a third pass usually overfits.",
        low=1, high=1000, group="Training", resumable=True,
        usual=(1, 20), harm="examples that are seen so often are memorized",
    )  # fmt: skip
    batch_size: int = setting(
        4, "training.batch_size", "integer",
        "it is the number of examples in a step; a larger batch makes the loss less noisy.",
        low=1, high=65536, group="Training",
        usual=(1, 1024), harm="few steps are left to learn in",
    )  # fmt: skip
    learning_rate: float = setting(
        2.0e-4, "training.learning_rate", "number",
        "it is the peak after the warm-up; 2.0e-4 is a good start for LoRA.",
        low=0, high=1, open_low=True, group="Training",
        usual=(1e-6, 5e-3), harm="above it the loss usually rises without end, and below it hardly anything is learned",
    )  # fmt: skip
    lr_schedule: str = setting(
        "linear", "training.lr_schedule", "text", "it shapes the learning rate after the warm-up.",
        choices=("constant", "linear", "cosine"), group="Training",
    )  # fmt: skip
    warmup_ratio: float = setting(
        0.03, "training.warmup_ratio", "number", "it is the share of all steps in which the learning rate rises.",
        low=0, high=1, open_high=True, group="Training",
        usual=(0, 0.3), harm="much of the run is spent below the learning rate that was chosen",
    )  # fmt: skip
    resume_warmup_steps: int = setting(
        0, "training.resume_warmup_steps", "integer",
        "it is the number of steps in which the learning rate rises anew after a resume, for a service that does not "
        "restore the optimizer; 0 goes on where the run was.",
        low=0, resumable=True,
    )  # fmt: skip
    weight_decay: float = setting(
        0.0, "training.weight_decay", "number", "0 switches it off.", low=0, high=10,
        usual=(0, 0.3), harm="the adapter is drawn towards zero more than towards the data",
    )  # fmt: skip
    grad_clip_norm: float = setting(
        0.0, "training.grad_clip_norm", "number", "it bounds the norm of the gradient; 0 switches it off.",
        low=0, high=1e6,
    )  # fmt: skip
    max_seq_length: int = setting(
        2048, "training.max_seq_length", "integer", "it counts tokens; longer examples are cut.",
        low=2, high=10**6, group="Training",
    )  # fmt: skip
    train_on: str = setting(
        "last_assistant", "training.train_on", "text",
        "it selects the messages that are trained on, where a line does not say so itself; last_turn takes all answers "
        "since the user last spoke.",
        choices=("last_assistant", "last_turn", "all_assistant"),
    )  # fmt: skip
    seed: int = setting(
        0, "training.seed", "integer", "it fixes the order of the data and the initial weights.",
        low=0, high=2**31 - 1, group="Training",
    )  # fmt: skip
    log_interval_steps: int = setting(
        10, "training.log_interval_steps", "integer", "it is the number of steps in a train record.",
        low=1, resumable=True,
    )  # fmt: skip
    checkpoint_interval_steps: int = setting(
        250, "training.checkpoint_interval_steps", "integer",
        "it is the number of steps between periodic checkpoints; 0 keeps none.",
        low=0, resumable=True,
    )  # fmt: skip
    eval_interval_steps: int = setting(
        250, "training.eval_interval_steps", "integer",
        "it is the number of steps between evaluations; 0 evaluates at the ends of epochs only.",
        low=0, group="Evaluation", resumable=True,
    )  # fmt: skip
    eval_at_epoch_end: bool = setting(
        True, "training.eval_at_epoch_end", "true or false",
        "true evaluates at the end of each epoch, too, which makes epochs comparable.",
        group="Evaluation", resumable=True,
    )  # fmt: skip
    eval_at_start: bool = setting(
        True, "training.eval_at_start", "true or false",
        "true evaluates the base model before the first step, which shows what training gains, or loses.",
        group="Evaluation", resumable=True,
    )  # fmt: skip
    eval_examples: int | None = setting(
        None, "training.eval_examples", "integer",
        "it is the number of conversations of each validation set that are evaluated, the same each time, and all of "
        "them beside that at the ends of epochs; null takes all each time.",
        low=2, high=10**9, optional=True, group="Evaluation",
    )  # fmt: skip
    monitor: str = setting(
        "val_loss", "training.monitor", "figure",
        "it is what early stopping and the best checkpoint go by; of several validation sets, val_loss is the first's.",
    )  # fmt: skip
    checkpoint_ttl_seconds: int | None = setting(
        None, "training.checkpoint_ttl_seconds", "integer",
        "it is the time after which a periodic checkpoint expires, unless it is the best or the latest, and, on a "
        "service elsewhere, one that is superseded; null keeps the periodic ones, and the others for a week.",
        low=3600, high=315_360_000, optional=True, resumable=True,
    )  # fmt: skip
    resume_from_checkpoint: bool = setting(
        True, "training.resume_from_checkpoint", "true or false",
        "false begins a new run, and moves the one in the directory to previous/.",
        resumable=True,
    )  # fmt: skip
    early_stopping_patience: int = setting(
        0, "training.early_stopping_patience", "integer",
        "it is the number of evaluations without improvement that end the run; 0 switches early stopping off.",
        low=0, group="Evaluation", resumable=True,
    )  # fmt: skip
    early_stopping_threshold: float = setting(
        0.01, "training.early_stopping_threshold", "number",
        "it is the least improvement that counts, in nats per completion token.",
        low=0, high=100, group="Evaluation", resumable=True,
        usual=(0, 0.3), harm="hardly any improvement counts, and the run ends early",
    )  # fmt: skip
    early_stopping_significance: float | None = setting(
        None, "training.early_stopping_significance", "number",
        "an improvement must also exceed this many standard errors of the paired difference; null asks for none.",
        low=0, high=10, optional=True, group="Evaluation", resumable=True,
        usual=(0, 4), harm="hardly any improvement counts, and the run ends early",
    )  # fmt: skip
    samples_at_evaluation: int = setting(
        0, "training.samples_at_evaluation", "integer",
        "it is the number of answers sampled at each evaluation; 0 writes no samples.jsonl.",
        low=0, high=64, resumable=True,
    )  # fmt: skip
    budget_usd: float | None = setting(
        None, "training.budget_usd", "number",
        "the run stops before its cost exceeds this many dollars; null sets no limit.",
        low=0, open_low=True, optional=True, group="Money", resumable=True,
    )  # fmt: skip
    steps_in_flight: int | None = setting(
        None, "training.steps_in_flight", "integer",
        "it is the number of steps in flight; null means 4, or 2 with service: local.",
        low=1, high=64, optional=True, resumable=True,
    )  # fmt: skip
    on_nonfinite: str = setting(
        "stop", "training.on_nonfinite", "text",
        "it says what to do after a NaN or infinite loss or gradient; skip goes back to the latest checkpoint and "
        "skips the batch.",
        choices=("stop", "skip"), resumable=True,
    )  # fmt: skip
    service_timeout_s: float | None = setting(
        3600.0, "training.service_timeout_s", "number",
        "a run ends after this many seconds without an answer, and can be resumed; null waits forever.",
        low=0, open_low=True, optional=True, resumable=True,
    )  # fmt: skip
    # The data themselves are compared by what they are, tokens and weights, wherever they and the template lie.
    data_dir: Path = setting(
        Path("data/training"),
        "data.dir",
        "path",
        "it holds train.jsonl and valid.jsonl, or files of another kind.",
        resumable=True,
    )
    train: str | Sequence[Mapping[str, Any]] | None = setting(
        None, "data.train", "training data",
        "it is a file, or NAME:SPLIT, a split of a data set on the hub or in a directory, or a list of several, mixed "
        "by weight; null takes train.jsonl of data.dir, or train.parquet and the like.",
        optional=True, resumable=True,
    )  # fmt: skip
    valid: str | Mapping[str, str] | None = setting(
        None, "data.valid", "validation data",
        "it is a file or NAME:SPLIT for validation, or several with names, such as {task: a.jsonl, general: b.jsonl}; "
        "null takes valid.jsonl of data.dir and the like, or nothing where data.train is given.",
        optional=True, resumable=True,
    )  # fmt: skip
    valid_fraction: float = setting(
        0.0, "data.valid_fraction", "number",
        "it is the share of prompts of the training data that are held out for validation, with all their answers, "
        "chosen by training.seed; lines that are added later move none of them.",
        low=0, high=1, open_high=True, resumable=True,
        usual=(0, 0.5), harm="less is trained on than is held out",
    )  # fmt: skip
    revision: str | None = setting(
        None, "data.revision", "text",
        "it is the commit, tag or branch of a data set on the hub; null takes the newest.",
        optional=True, resumable=True,
    )  # fmt: skip
    format: str = setting(
        "auto", "data.format", "text",
        "auto tells the format of each row by its keys; else messages, sharegpt, prompt_completion, alpaca, text, or "
        "module:function, a function of yours.",
        resumable=True,
    )  # fmt: skip
    columns: Mapping[str, str] = setting(
        {}, "data.columns", "names of columns",
        "they are what the data call the keys of a format, such as {prompt: question, completion: answer}.",
        resumable=True,
    )  # fmt: skip
    template: str = setting(
        "auto", "data.template", "text",
        "auto is the tokenizer's own chat template; else a file that holds one, or renderer:NAME, a renderer of the "
        "package tinker-cookbook.",
        resumable=True,
    )  # fmt: skip
    template_arguments: Mapping[str, Any] = setting(
        {}, "data.template_arguments", "names and values",
        "they are variables of the chat template, such as enable_thinking: false.",
        resumable=True,
    )  # fmt: skip
    escape_special: bool = setting(
        False, "data.escape_special", "true or false",
        "true trains a special token that stands in a message, such as `<|im_end|>`, as nothing but text.",
        resumable=True,
    )  # fmt: skip
    max_skipped_share: float = setting(
        0.01, "data.max_skipped_share", "number",
        "it is the share of lines that may be unusable; they are skipped and counted, and above it no run begins.",
        low=0, high=1, resumable=True,
    )  # fmt: skip
    output_dir: Path = setting(
        Path("models/adapters/tinker"), "output.dir", "path", "the run is written there.", resumable=True
    )
    service_key_env: str = setting(
        "TINKER_UTILS_SERVICE_KEY", "service_key_env", "key variable",
        "a service at a URL gets the key in this variable, and never TINKER_API_KEY, which is the hosted service's.",
        resumable=True,
    )  # fmt: skip
    base_dir: Path = field(default=Path(), compare=False, repr=False)

    @property
    def in_flight(self) -> int:
        """Return how many steps are kept in flight.

        Four bridge a round trip of half a cycle of the hosted service. The embedded one is a loopback away, where one
        step waiting behind the one that runs is enough, and a stop takes effect sooner.
        """
        return self.steps_in_flight or (2 if self.service == "local" else 4)

    def resolve(self, path: Path) -> Path:
        """Return an input path that can be opened: below the current directory, or else below `base_dir`."""
        path = as_path(path, "path")
        return path if path.is_absolute() or exists(path) else self.base_dir / path

    def resolved(self) -> TrainingConfig:
        """Return the same with input paths made absolute, so that it means the same from any directory."""
        directory = self.resolve(Path(self.model))
        local_files = self.service == "local" and self.model != "tiny" and is_directory(directory)
        model = str(directory.resolve()) if local_files else self.model
        template = self.resolve(Path(self.template))
        return replace(
            self,
            model=model,
            template=str(template.absolute()) if is_file(template) else self.template,
            data_dir=self.resolve(self.data_dir).absolute(),
            train=self._absolute(self.train),
            valid=self._absolute(self.valid),
        )

    def _absolute(self, data: Any) -> Any:
        """Return the name of a file or of a directory with a split as an absolute one; of several, each."""
        if isinstance(data, list):
            return [{**source, "path": self._absolute(source["path"])} for source in data]
        if isinstance(data, dict):
            return {name: self._absolute(each) for name, each in data.items()}
        for name, colon, split in ((data or "", "", ""), (data or "").partition(":")):
            path = self.resolve(Path(name))
            if is_directory(path) if colon else is_file(path):
                return f"{path.absolute()}{colon}{split}"
        return data

    def to_flat_dict(self) -> dict[str, Any]:
        """Return the settings by their dotted keys: what `from_values` takes."""
        lora = {key: getattr(self.lora, name) for key, name in _LORA_FIELDS.items()}
        values = lora | {key: getattr(self, name) for key, name in _TRAINING_FIELDS.items()}
        return {key: plain(values[key]) for key in RULES}

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainingConfig:
        """Return the same with some settings replaced, by their dotted keys.

        Raises:
            ConfigError: a key is unknown, or a value is not allowed.
        """
        return from_values(self.to_flat_dict() | dict(overrides), self.base_dir)


_LORA_FIELDS = {rule.key: name for name, rule in rules_of(LoraConfig).items()}
_TRAINING_FIELDS = {rule.key: name for name, rule in rules_of(TrainingConfig).items()}
# The rule of each setting by its dotted key, in the order of a file.
RULES: dict[str, Rule] = {
    rule.key: rule
    for rule in sorted(
        (*rules_of(LoraConfig).values(), *rules_of(TrainingConfig).values()),
        key=lambda rule: rule.key not in ("service", "model", "service_key_env"),
    )
}


def from_values(values: Mapping[str, Any], base_dir: Path = Path()) -> TrainingConfig:
    """Make a configuration from dotted keys and values; what is not given takes its default.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed.
    """
    if unknown := [key for key in values if key not in RULES]:
        raise ConfigError(f"{unknown[0]}: there is no such setting{did_you_mean(unknown[0], list(RULES))}.")
    lora = LoraConfig(**{_LORA_FIELDS[key]: value for key, value in values.items() if key in _LORA_FIELDS})
    rest = {_TRAINING_FIELDS[key]: value for key, value in values.items() if key in _TRAINING_FIELDS}
    return TrainingConfig(lora=lora, base_dir=base_dir, **rest)
