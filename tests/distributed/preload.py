"""What the fork server imports once for all ranks (on the CPU, one thread a rank unless told otherwise)."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import megatron_ngpt.training.loop  # noqa: F401
