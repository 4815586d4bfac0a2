"""Checkpoints without a layout, the models exported from them, and training that starts from an export."""
