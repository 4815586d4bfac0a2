"""What a rank's stacks tell, as `faulthandler` writes them: where it is in the code, and whether it waits for other ranks there."""

import re
from dataclasses import dataclass

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+).*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_OUTERMOST = ("<module>", "_run_module_as_main")  # functions at which a main thread's stack ends
_CUT = "  ..."  # the line at which a stack ends that is too deep
COLLECTIVES = "torch/distributed/distributed_c10d.py"
WATCHED = "megatron_ngpt/monitor/clock.py"  # between a collective and what calls it, in a step that is measured
FUTURE = "concurrent/futures/_base.py"
OWN = "megatron_ngpt/"


@dataclass(frozen=True)
class Place:
    """Where a rank's main thread is: `file:line in function` of the innermost frame of this project, and whether it waits for others."""

    place: str
    waits: bool


def read_place(text: str, thread: int) -> Place | None:
    """From one dump of all threads; None where it does not have the main `thread` (its `ident`) whole: more of it is being written."""
    parts = _THREAD.split(text)[1:]
    stacks = {int(number, 16): stack for number, stack in zip(parts[::2], parts[1::2], strict=True)}
    main = _FRAME.findall(stacks.get(thread, ""))
    if not main or (main[-1][2] not in _OUTERMOST and _CUT not in stacks[thread].splitlines()):
        return None
    others = [_FRAME.findall(stack) for number, stack in stacks.items() if number != thread]
    waits = _waits(main) or (_within(main, FUTURE) and any(_waits(frames) for frames in others))
    file, line, function = next((frame for frame in main if OWN in frame[0] and not frame[0].endswith(WATCHED)), main[0])
    start = file.rfind(OWN)
    return Place(f"{file[max(0, start):]}:{line} in {function}", waits)


def _waits(frames: list[tuple[str, str, str]]) -> bool:
    """Whether the thread is in a collective."""
    return _within(frames, COLLECTIVES) or (bool(frames) and frames[0][0].endswith(WATCHED))


def _within(frames: list[tuple[str, str, str]], module: str) -> bool:
    return any(file.endswith(module) for file, _, _ in frames)
