"""What a rank's stacks tell, as `faulthandler` writes them: where it is in the code, and whether it waits for other ranks there."""

import re
from dataclasses import dataclass

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
COLLECTIVES = "torch/distributed/distributed_c10d.py"
FUTURE = "concurrent/futures/_base.py"
OWN = "megatron_ngpt/"


@dataclass(frozen=True)
class Place:
    """Where a rank's main thread is: `file:line in function` of the innermost frame of this project, and whether it waits for others."""

    place: str
    waits: bool


def read_place(text: str) -> Place | None:
    """From one dump of all threads, the main thread last; None if there is none in the text."""
    threads = [_FRAME.findall(frames) for frames in _THREAD.split(text)[1:]]
    if not threads or not threads[-1]:
        return None
    main, others = threads[-1], threads[:-1]
    waits = _within(main, COLLECTIVES) or (_within(main, FUTURE) and any(_within(frames, COLLECTIVES) for frames in others))
    file, line, function = next((frame for frame in main if OWN in frame[0]), main[0])
    start = file.rfind(OWN)
    return Place(f"{file[max(0, start):]}:{line} in {function}", waits)


def _within(frames: list[tuple[str, str, str]], module: str) -> bool:
    return any(file.endswith(module) for file, _, _ in frames)
