"""LoRA fine-tuning on Tinker from Jupyter: per-token losses, early stopping, live curves."""
