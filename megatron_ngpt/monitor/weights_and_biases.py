"""Weights & Biases, through its own package (the extra `wandb`)."""

import html
import os
import secrets

from megatron_ngpt.monitor.logger import Logger, RunInfo
from megatron_ngpt.monitor.table import flat


class WandbLogger(Logger):
    """A run of Weights & Biases with the recipe as its configuration and the run directory's name; its files lie in `wandb/` there.

    A run that goes on from a checkpoint goes on there too: its id is kept in `wandb/id`. What was told of steps after the checkpoint stays,
    and what is told of them again lies over it. Without WANDB_MODE, and without a key, nothing is sent (offline): never is a person asked.
    """

    def __init__(self, run: RunInfo):
        import wandb

        self._wandb = wandb
        id_file = run.output / "wandb" / "id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not (run.start_step and id_file.is_file()):
            id_file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "megatron_ngpt"),
            name=run.output.absolute().name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(run.output),
            config=run.recipe.model_dump(mode="json"),
            mode=os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # a checkpoint's values come when later steps were told already

    def scalars(self, step: int, values: dict) -> None:
        """The numbers, by the names of `flat`."""
        self._run.log({"step": step} | flat(values))

    def text(self, step: int, name: str, text: str) -> None:
        """As it is."""
        self._run.log({"step": step, name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    def close(self) -> None:
        """Wait until everything is written, or sent."""
        self._run.finish()
