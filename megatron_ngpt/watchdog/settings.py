"""What a watchdog is told when it is started."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """Of one rank's watchdog.

    Attributes:
        process, thread: the rank's, and its main thread's `ident`.
        page, control, console: file descriptors: the shared page, a socket to the rank, what a person reads.
        log, output: the rank's log file and the run directory.
        keys: the recipe's `watchdog`.
        dump: the number of the signal on which the rank writes its stacks to its log.
        flight: the named pipe at which torch's flight recorder waits for a word; None: there is none.
        interval: seconds between two reports.
        period: seconds over which ranks' work is compared.
    """

    process: int
    thread: int
    page: int
    control: int
    console: int
    rank: int
    local_rank: int
    host: str
    log: str
    output: str
    keys: dict[str, int]
    dump: int
    flight: str | None = None
    interval: float = 1.0
    period: float = 30.0

    def write(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Settings":
        """What `write` wrote."""
        return cls(**json.loads(text))
