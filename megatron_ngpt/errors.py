"""The exceptions of the project: a user's mistake is told from a failure at run time, and from a bug, by its type."""


class NgptError(Exception):
    """Base of everything the project raises on purpose; `exit_code` is what a command leaves with."""

    exit_code = 1


class ConfigError(NgptError):
    """A mistake in a recipe, an option or an input file: found before expensive work starts.

    Every problem is one line that names the key, the value and what would be valid; several are told at once.
    """

    exit_code = 2

    def __init__(self, *problems: str):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(ConfigError):
    """A dataset or tokenizer that is missing, damaged or does not fit the recipe."""


class CheckpointError(NgptError):
    """A checkpoint that is missing, incomplete, damaged or belongs to another model."""


class DamagedError(CheckpointError):
    """A checkpoint that was whole once and is not any more: a file is missing, cut, or has not its checksum."""


class NotFiniteError(DamagedError):
    """A checkpoint that holds values which are infinite or NaN: no run and no answer can come of it."""


class TrainingError(NgptError):
    """Training cannot go on, for example because the loss is not finite. Every rank raises it, rank 0 tells it."""


class TaskError(NgptError):
    """The code of an lm-eval task failed on some rank, which every rank knows: the model and the ranks are well."""


class ToldError(NgptError):
    """A failure that a person has been told already."""


class RankError(NgptError):
    """A failure of one rank alone, for example a damaged file that only it reads: that rank must tell it."""
