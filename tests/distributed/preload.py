"""What the fork server imports once for all ranks (on the CPU, one thread a rank)."""

import os

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")

import megatron_ngpt.training.loop  # noqa: F401
