"""What each rank's log begins with."""

import os

from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import cut
from tests.distributed.ranks import train


def test_every_log_tells_rank_place_versions_and_what_the_recipe_changes(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    recipe = [str(corpus / "recipe.yaml"), "--schedule.kind=constant", *(f"--{key}={value}" for key, value in cut(2).items())]
    train(2, [*recipe, "--training.steps=1"], tmp_path / "run", others=[([*recipe, "--training.steps=2"], tmp_path / "run")])
    for rank in range(2):
        text = (tmp_path / "run" / "logs" / f"rank-{rank:05}.log").read_text()
        assert f"rank {rank} of 2 on {os.uname().nodename}: tensor {rank} of 2, context 0 of 1, data 0 of 1, pipeline 0 of 1; CPU, " in text
        assert "Python 3." in text and ", torch 2." in text and ", deepspeed 0." in text
        assert "gcc" not in text  # DeepSpeed's search for kernels that nothing here uses
        assert "recipe: the first start" in text and "recipe: training.steps: 1 → 2" in text and text.count("recipe: ") == 2
