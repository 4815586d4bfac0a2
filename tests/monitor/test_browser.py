"""TensorBoard in a real browser: what a person sees of a run without a click, and behind each tab."""

import socket
import subprocess
import sys
import urllib.request

import pytest

from tests.browser import browser, needs_browser, seen, until
from tests.distributed.ranks import train

pytestmark = [pytest.mark.heavy, pytest.mark.browser, needs_browser, pytest.mark.usefixtures("in_repository")]


@pytest.fixture(scope="module")
def board(corpus, tmp_path_factory):
    """The address of a TensorBoard that shows the directory of two real runs, `small` and `smaller`."""
    runs = tmp_path_factory.mktemp("board") / "runs"
    runs.mkdir()
    keys = [f"--data.valid=[{{prefix: {corpus}/b, name: held-out}}]", "--training.eval_every=2", "--training.steps=4"]
    turns = [[str(corpus / "recipe.yaml"), *keys, "--deepspeed=zero1", f"--model.layers={layers}"] for layers in (2, 1)]
    train(1, turns[0], runs / "small", others=[(turns[1], runs / "smaller")])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)])
    try:
        until(lambda: "small/validation" in fetched(f"http://localhost:{port}/data/runs"))
        yield f"http://localhost:{port}/"
    finally:
        server.terminate()
        server.wait()


def fetched(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def until_shown(board: str, tab: str, *wanted: str) -> str:
    """The text of a tab without blanks, as titles are cut into pieces, once it has all that is wanted."""
    with browser(1920, 1250) as driver:
        driver.get(f"{board}#{tab}")
        until(lambda: all(squeezed(part) in squeezed(seen(driver)) for part in wanted))
        return squeezed(seen(driver))


def squeezed(text: str) -> str:
    return text.replace(" ", "")


def test_the_first_page_is_health_and_pace_of_runs_with_names(board):
    first = "1 health/loss", "1 health/norm_of_gradients", "1 health/out_of_range", "2 pace/step_seconds"  # cards in sight
    text = until_shown(board, "timeseries", *first, "small/training", "small/validation", "smaller/training")
    assert text.index("1health/loss") < text.index("1health/norm_of_gradients") < text.index("2pace/")
    assert "sphere" in text and "sphere/max_norm_error" not in text  # a click away


@pytest.mark.parametrize(("tab", "wanted"), [
    ("text", ["recipe", "hidden: 80", "sample", "▮"]),
    ("hparams", ["model.arch", "model.layers", "optimizer.lr", "validation loss", "ngpt"]),
    ("custom_scalars", ["1 health", "2 pace", "nats a token", "tokens/s"]),
])
def test_behind_each_tab(board, tab, wanted):
    until_shown(board, tab, *wanted)
