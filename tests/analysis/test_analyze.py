"""`ngpt analyze`: numbers beside numpy's on gathered weights, from several layouts and exports, and what it writes."""

import csv

import numpy as np
import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_ngpt.analysis.analyze import Choices, analyse, labels, run
from megatron_ngpt.analysis.texts import open_text
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.catalogue import find_checkpoint
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.config.recipe import Data, Dataset, Recipe, Training
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import ConfigError, DataError, NgptError
from tests.browser import browser, needs_browser
from tests.checkpoint.layouts import MODEL, VOCABULARY, Layout, build, fill
from tests.checkpoint.test_hub_llama import make_llama
from tests.checkpoint.trained import make_model, save_run
from tests.on_ranks import on_ranks

LAYOUTS = {"one": Layout(), "tensor": Layout(tensor=2), "mixed": Layout(tensor=2, data=2, partition=True), "pipeline": Layout(pipeline=2)}


def save_worker(layout, path):
    shards, optimizer = build(layout, dist.get_rank())
    fill(shards, optimizer, 7, 0)
    recipe = Recipe(model=MODEL, data=Data(tokenizer="none", train=[Dataset(prefix="none")]), training=Training(output="none"))
    save(path, shards, None, {"step": 3, "tokens": 1, "recipe": recipe.model_dump(mode="json"), "vocabulary": VOCABULARY})


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("analysis") / "checkpoint"
    on_ranks(LAYOUTS[request.param].ranks, save_worker, LAYOUTS[request.param], path, seconds=200)
    return path


def gathered() -> dict[str, np.ndarray]:
    """Every parameter as one process fills it, float64."""
    shards, optimizer = build(Layout(), 0)
    fill(shards, optimizer, 7, 0)
    return {name: shard.master.detach().double().reshape(shard.placement.shape).numpy() for name, shard in shards.items()}


def test_numbers_are_numpys_in_every_layout(saved):
    found, weights = analyse(Weights(saved, "model"), None, 1), gathered()
    for spectrum in found.spectra:
        room = "self_attn" if spectrum.matrix in "qkvo" else "mlp"
        matrix = weights[f"model.layers.{spectrum.layer}.{room}.{spectrum.matrix}_proj.weight"]  # q, k, v, o: rows belong to heads
        if spectrum.head is not None:
            matrix = matrix[spectrum.head * MODEL.head_size :][: MODEL.head_size]
        wanted = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(spectrum.values, wanted, rtol=1e-9, atol=1e-12)
        assert spectrum.rank(1e-3) == np.linalg.matrix_rank(matrix, tol=1e-3 * wanted[0])
    assert len(found.spectra) == 2 * (4 + 2 + 2 + 4 + 4 + 3)
    for of_end, name in zip(found.embeddings, ("model.embed_tokens.weight", "lm_head.weight"), strict=True):
        table = weights[name]
        np.testing.assert_allclose(of_end.norms, np.linalg.norm(table, axis=1))
        np.testing.assert_allclose(of_end.eigenvalues, np.linalg.eigvalsh(table.T @ table / len(table))[::-1], rtol=1e-8)
        directions = table / np.linalg.norm(table, axis=1, keepdims=True)
        wanted = (directions @ directions.T)[np.triu_indices(len(table), 1)]
        np.testing.assert_allclose(np.sort(of_end.cosines), np.sort(wanted), atol=1e-12)
    alpha = np.abs(weights["model.layers.1.mlp.alpha"]) * 0.05 * MODEL.hidden**0.5
    np.testing.assert_allclose(found.scales.alpha["mlp"][1], alpha, rtol=1e-6)


def write_data(prefix, tokens) -> str:
    with IndexedWriter(str(prefix), np.dtype(np.uint16)) as writer:
        writer.add(np.array(tokens, np.uint16), np.array([len(tokens)], np.int32))
        writer.finish(str(prefix), {})
    return str(prefix)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run of nGPT, its export, and a Llama by transformers."""
    directory = tmp_path_factory.mktemp("models")
    save_run(directory / "ngpt", make_model())
    export(directory / "ngpt", directory / "exported")
    make_llama(directory / "llama")
    return directory


@pytest.fixture(scope="module")
def data(models):
    return write_data(models / "data", [1, 2, 2, 3, 3, 3, 32, 5])


def test_an_export_has_the_runs_numbers(models, data):
    both = [Weights(find_checkpoint(models / "ngpt", "MODEL"), "ngpt"), Weights(models / "exported", "exported")]
    mine, theirs = (analyse(weights, open_text(weights, data, 3), 6) for weights in both)
    for one, other in zip(mine.spectra, theirs.spectra, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(mine.scales.qk, theirs.scales.qk, rtol=1e-6)
    assert [e.largest for e in mine.jacobians] == pytest.approx([e.largest for e in theirs.jacobians], rel=1e-4)


def test_a_llamas_matrices_are_those_that_transformers_saved(models):
    tensors = load_file(models / "llama" / "model.safetensors")
    found = analyse(Weights(models / "llama", "llama"), None, 1)
    assert found.scales is None and not found.jacobians
    (of_output,) = (s for s in found.spectra if (s.matrix, s.layer, s.head) == ("o", 1, 2))
    columns = tensors["model.layers.1.self_attn.o_proj.weight"].double().numpy()[:, 12:18]
    np.testing.assert_allclose(of_output.values, np.linalg.svd(columns, compute_uv=False), rtol=1e-9)


@pytest.fixture(scope="module")
def report(models, data):
    run([models / "ngpt", models / "llama"], models / "report", Choices(data, tokens=6, steps=5))
    return models / "report"


def test_what_is_written(report):
    page = (report / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == len(list(report.glob("*.png"))) == 5 and "http" not in page
    with open(report / "s_z.csv", encoding="utf-8") as file:
        counts = {row["token"]: row["occurrences"] for row in csv.DictReader(file)}
    assert len(counts) == 33 and (counts["2"], counts["3"], counts["0"]) == ("2", "3", "0")
    with open(report / "jacobians.csv", encoding="utf-8") as file:
        found = {(row["model"], row["block"]) for row in csv.DictReader(file)}
    assert found == {(model, block) for model in ("ngpt", "llama") for block in ("0", "1", "all")}
    assert not list(report.parent.glob("*.partial"))


def test_what_is_in_the_way_is_left(models, report, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in report.iterdir()}
    with pytest.raises(ConfigError, match=r"--out: .* exists"):
        run([models / "ngpt"], report, Choices())
    assert {path: path.stat().st_mtime_ns for path in report.iterdir()} == before
    with pytest.raises(DataError, match="holds token id 99, and ngpt knows 33"):
        run([models / "ngpt"], models / "new", Choices(write_data(models / "foreign", [1, 99])))
    with pytest.raises(ConfigError, match="is no checkpoint; valid is a run directory"):
        run([models / "ngpt", models], models / "new", Choices())
    monkeypatch.setattr("megatron_ngpt.analysis.analyze.write_tables", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(NgptError, match="new could not be written: No space left"):
        run([models / "exported"], models / "new", Choices())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs matplotlib"):
        run([models / "ngpt"], models / "new", Choices())
    assert not list(models.glob("new*"))


def test_a_run_is_looked_at_with_its_own_text(tmp_path):
    data = write_data(tmp_path / "data", range(33))
    made = save_run(tmp_path / "run", make_model())
    state = Weights(made, "run")
    assert open_text(state, None, 4) is None  # its recipe names no dataset that is there
    state.recipe["data"] |= {"train": [{"prefix": "gone"}], "valid": [{"prefix": "gone"}, {"prefix": data}]}
    text = open_text(state, None, 4)
    assert text.name == data and text.tokens_T.tolist() == [0, 1, 2, 3] and text.counts_V.tolist() == [1] * 33


def test_models_are_called_by_what_tells_them_apart(tmp_path):
    runs, step = tmp_path / "runs", "checkpoints/step-00000200"
    assert labels([runs / "a", runs / "b"]) == ["a", "b"]
    assert labels([runs / "a" / step, runs / "b" / step]) == ["a/step-00000200", "b/step-00000200"]
    assert labels([runs / "x" / "a", runs / "y" / "a", runs / "x" / "a"])[1:] == ["y/a", "x/a (3)"]


@pytest.mark.heavy
@pytest.mark.browser
@needs_browser
def test_the_report_opens_in_a_browser(report):
    with browser(1200, 3000) as driver:
        driver.get((report / "report.html").as_uri())
        assert len(driver.get_screenshot_as_png()) > 50_000
        shown = driver.page_source
    assert "Condition numbers" in shown and shown.count("<img") == 5
