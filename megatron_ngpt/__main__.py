"""`python -m megatron_ngpt`: the command `ngpt`, for launchers that start a module on every rank.

    torchrun --nproc_per_node 2 -m megatron_ngpt generate MODEL --prompt TEXT --tensor 2
"""

from megatron_ngpt.cli import run

if __name__ == "__main__":
    run()
