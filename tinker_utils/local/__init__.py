"""The embedded service: Tinker's protocol on a loopback port, over PyTorch, transformers and peft on this machine.

`start_local_service` runs it as a process of its own; `python -m tinker_utils.local` runs it in a terminal. Importing
this package loads neither torch nor tinker.

What it adds to Tinker, and where it is stricter:

- LoRA alpha, dropout and target modules are taken from the training client's `user_metadata` (`lora_user_metadata`).
- A client that reads log-probabilities only where a weight is not 0 may say so in the same place
  (`WEIGHTED_LOGPROBS`): it gets 0 elsewhere, sooner.
- `optim_step` reports `grad_norm`, the gradient's norm before clipping (or `grad_norm_nonfinite`, if it is not a
  number). It fails, and leaves the weights alone, if there is no gradient, or if a `forward_backward` since the last
  step failed.
- Dropout depends on the model's seed and on the number of `forward_backward` calls before, and on nothing else; both
  are saved with a checkpoint. A gradient that has accumulated without a step is not.
- `cross_entropy` wants its weights spelled out. Served besides: `importance_sampling`, `ppo`, `cispo`, `dro`.
- Sampled log-probabilities are those of temperature 1. Stop strings and tokens add to the model's end-of-text tokens;
  an empty list switches all of them off.

Images, other optimizers, top-k log-probabilities and encryption are refused with an error that says so.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
