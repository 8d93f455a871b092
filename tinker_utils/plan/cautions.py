"""Cautions about settings, for a person to read before a run starts: said alike by a form, a plan and a run."""

from __future__ import annotations

from collections.abc import Iterator

from tinker_utils.config.address import in_the_clear, named_address
from tinker_utils.config.rules import ATTENTION_MODULES, MLP_MODULES, UNEMBED_MODULES
from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.loss import PooledLoss

# How many times worse than the threshold a validation loss may be known, and the least threshold that counts for this.
_KNOWN_WORSE, _LEAST_THRESHOLD = 5, 0.01
_GROUPS = {"attention": ATTENTION_MODULES, "MLP": MLP_MODULES, "unembedding": UNEMBED_MODULES}


def refusals(config: TrainingConfig) -> Iterator[str]:
    """Yield which settings the hosted service refuses: no run begins with them.

    That its ranks are powers of two is from the tinker-cookbook's sweep over ranks and models.
    """
    if named_address(config) is None and config.service == "tinker" and (nearest := _other_ranks(config.lora.rank)):
        yield f"lora.rank: the hosted service takes powers of two, received {config.lora.rank:,}; choose {nearest}."


def _other_ranks(rank: int) -> str:
    """Return the powers of two beside a rank; nothing for one that is a power of two itself."""
    below = 1 << (rank.bit_length() - 1)
    return "" if rank == below else f"{below:,} or {2 * below:,}"


def about_settings(config: TrainingConfig) -> Iterator[str]:
    """Yield which values are far from what is usual, and what they are likely to do."""
    for key, value in config.to_flat_dict().items():
        low, high = RULES[key].usual
        if isinstance(value, int | float) and not low <= value <= high:
            yield f"{key} = {value:g} is outside the usual range, {low:g} to {high:g}: {RULES[key].harm}."


def about_service(config: TrainingConfig) -> Iterator[str]:
    """Yield what the service will not honour, and that the way to it can be read."""
    yield from about_address(config)
    if config.service == "local":
        return
    hosted = config.service == "tinker"
    service = "the hosted service" if hosted else "a server other than the embedded one"
    if nearest := "" if any(refusals(config)) else _other_ranks(config.lora.rank):
        yield (
            f"lora.rank = {config.lora.rank:,} is no power of two: the hosted service refuses such a rank, and another "
            f"server may, too; {nearest} is safe."
        )
    values = config.to_flat_dict()
    sent = [f"{key} = {values[key]}" for key, rule in RULES.items() if rule.as_metadata]
    yield (
        f"{' and '.join(sent)} are sent as metadata only: the protocol has no place for them, and {service} "
        f"{'uses' if hosted else 'may use'} its own values."
    )
    for name, modules in _GROUPS.items():
        chosen = set(config.lora.target_modules) & set(modules)
        if chosen and chosen != set(modules):
            yield (
                f"lora.target_modules lists only {', '.join(sorted(chosen))} of the {name} modules: "
                f"{service} {'trains' if hosted else 'may train'} the whole group."
            )


def about_address(config: TrainingConfig) -> Iterator[str]:
    """Yield that what is sent to the service can be read on its way."""
    url = named_address(config) or ""
    if in_the_clear(url):
        yield (
            f"{url} is plain HTTP: whoever is on the way can read and change data and answers, and no key is sent; "
            "use https:// or a tunnel to this machine (ssh -L)."
        )


def about_evaluation(config: TrainingConfig, has_validation: bool, evaluations: int) -> Iterator[str]:
    """Yield reasons why overfitting would go unseen, or would not end the run."""
    if not has_validation:
        yield (
            "There are no validation data: nothing is evaluated, and nothing can stop the run early; add valid.jsonl, "
            "or set data.valid_fraction."
        )
    elif not evaluations:
        yield "No evaluation is planned before the run ends: lower training.eval_interval_steps."
    elif not config.early_stopping_patience:
        yield "Early stopping is off (training.early_stopping_patience is 0): overfitting will not end the run."
    elif evaluations <= config.early_stopping_patience:
        yield (
            f"Early stopping cannot end the run: it needs at least {config.early_stopping_patience + 1:,} evaluations, "
            f"but only {evaluations:,} are planned; lower training.early_stopping_patience or "
            "training.eval_interval_steps."
        )


def about_eval_tokens(evaluated: int, trained: int) -> Iterator[str]:
    """Yield that the evaluations read far more than the training does."""
    if evaluated > 1.5 * trained:
        yield (
            f"The evaluations read {evaluated:,} tokens, {evaluated / max(trained, 1):.1f} times as many as are "
            "trained on: set or lower training.eval_examples, or raise training.eval_interval_steps."
        )


def about_size(examples: int, pooled: PooledLoss, threshold: float, of_more: bool = False) -> str:
    """Return what an evaluation shows of a validation set that is too small to judge by; empty if it is not.

    Evaluations of one run are compared example by example, which takes most of the noise out of their difference: what
    is said here begins where the loss itself is known several times worse than the threshold. `of_more` says that there
    are further examples, which are not evaluated each time.
    """
    more = "raise training.eval_examples" if of_more else "hold out more"
    least = _KNOWN_WORSE * max(threshold, _LEAST_THRESHOLD)
    if pooled.loss is None or (pooled.margin is not None and pooled.margin <= least):
        return ""
    if pooled.margin is None:
        return f"{examples:,} examples are too few to say how well the loss is known; {more}."
    return (
        f"with {examples:,} examples the loss is known to ± {pooled.margin:.2g} nats per token (95%): between runs, a "
        f"difference below that is noise; the threshold is {threshold:g}. {more.capitalize()}, or set "
        "training.early_stopping_significance, which judges each difference by its own error."
    )


def about_money(config: TrainingConfig, cost_usd: float | None) -> Iterator[str]:
    """Yield whether the budget, if any, will be kept; `cost_usd` is that of all epochs, None without a price."""
    budget = config.budget_usd
    if budget is not None and cost_usd is None:
        yield "training.budget_usd cannot be applied: the price of this model on this service is not known."
    elif budget is not None and cost_usd is not None and cost_usd > budget:
        yield f"All epochs would cost ${cost_usd:.2f}; the run stops before its cost exceeds ${budget:.2f}."


def about_lengths(cut: int, examples: int, max_seq_length: int, estimated: bool = False) -> Iterator[str]:
    """Yield how many examples lose their end."""
    if cut:
        about = "About " if estimated else ""
        yield f"{about}{cut:,} of {examples:,} examples are longer than {max_seq_length:,} tokens, and are cut."
