"""What the fork server imports once for all ranks (on the CPU, one thread a rank unless told otherwise)."""

import importlib
import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

for module in (
    "megatron_ngpt.training.loop",
    "megatron_ngpt.training.run",
    # What each rank would import by itself as DeepSpeed comes to need it: 0.2 to 0.4 of its 1 to 3 seconds.
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch.utils.serialization.config",
):
    importlib.import_module(module)
