"""What Inductor would fuse into kernels, for a CPU or a GPU that is not there: graphs are lowered and scheduled, and no code is made.

Of a GPU it asks for a few numbers before it fuses, such as how many multiprocessors a long sum is to be divided among: an H100's are given.
That Triton is not installed does not matter so far.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._python_dispatch import _disable_current_modes

DEVICES = {"CPU": torch.device("cpu"), "GPU": torch.device("cuda", 0)}
H100 = DeviceProperties("cuda", 0, 132, cc=90, major=9, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32)


@dataclass
class Passes:
    """Of what was compiled: bytes that kernels move, how many kernels there are, and of how many graphs they are; without products and
    attention."""

    bytes: int = 0
    kernels: int = 0
    graphs: int = 0


def counting(function: Callable, device: torch.device, options: dict) -> tuple[Callable, Passes]:
    """`function` compiled for the device with the compiler's options, as far as fusion, and run without; its graphs are counted as they
    come, backward's too."""
    passes = Passes()

    def inner(module: torch.fx.GraphModule, inputs: list, **keys) -> Callable:
        with _disable_current_modes():
            sizes = kernel_bytes(copy.deepcopy(module), inputs, keys.get("is_backward", False), device)
        passes.bytes += sum(sizes)
        passes.kernels += len(sizes)
        passes.graphs += 1

        def run(arguments: list):
            with torch.no_grad():
                return module(*arguments)

        run._boxed_call = True
        return run

    def backend(module: torch.fx.GraphModule, inputs: list):
        return compile_fx.compile_fx(module, inputs, inner_compile=inner, config_patches=options)

    torch._dynamo.reset()
    return torch.compile(function, backend=backend), passes


def kernel_bytes(module: torch.fx.GraphModule, inputs: list, backward: bool, device: torch.device) -> list[int]:
    """What each kernel of a graph reads and writes; the module is changed."""
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [_like(x, device) if isinstance(x, torch.Tensor) else x for x in inputs]
    with DebugContext(), V.set_fake_mode(mode), _imagined(device):
        compile_fx.view_to_reshape(module)
        FakeTensorProp(module, mode=mode).propagate_dont_convert_inputs(*fakes)
        compile_fx.record_original_output_strides(module)
        compile_fx._recursive_post_grad_passes(module, is_inference=False)
        graph = GraphLowering(module, example_inputs=fakes, shape_env=None, is_backward=backward)
        with V.set_graph_handler(graph):
            graph.run(*fakes)
            graph.init_wrapper_code()
            graph._update_scheduler()
            kernels = [n for n in graph.scheduler.nodes if not isinstance(n, ExternKernelSchedulerNode | NopKernelSchedulerNode)]
            return [node.get_read_write_buffers_sizes() for node in kernels]


def _like(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


@contextmanager
def _imagined(device: torch.device) -> Iterator[None]:
    """A GPU that answers what the lowering asks it."""
    with ExitStack() as stack:
        if device.type != "cpu":
            properties = SimpleNamespace(**H100._asdict())
            for owner, name, answer in (
                (DeviceProperties, "create", H100), (CudaInterface, "get_device_properties", properties),
                (torch.cuda, "is_available", True), (scheduler, "has_triton", True),
            ):  # fmt: skip
                stack.enter_context(patch.object(owner, name, lambda *_, answer=answer: answer))
        yield
