"""`ngpt analyze`: numbers beside numpy's on gathered weights, from several layouts and exports, and what it writes."""

import csv
import shutil
import subprocess

import numpy as np
import pytest
import torch

from megatron_ngpt.analysis.analyze import analyse, run
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.config.recipe import Data, Dataset, Recipe, Training
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import ConfigError, DataError
from tests.checkpoint.layouts import MODEL, VOCABULARY, Layout, build, fill, run_ranks
from tests.checkpoint.test_hub_llama import make_llama
from tests.checkpoint.trained import make_model, save_run

LAYOUTS = {"one": Layout(), "tensor": Layout(tensor=2), "mixed": Layout(tensor=2, data=2, partition=True), "pipeline": Layout(pipeline=2)}


def save_worker(rank, layout, path):
    shards, optimizer = build(layout, rank)
    fill(shards, optimizer, 7, 0)
    recipe = Recipe(model=MODEL, data=Data(tokenizer="none", train=[Dataset(prefix="none")]), training=Training(output="none"))
    save(path, shards, None, {"step": 3, "tokens": 1, "recipe": recipe.model_dump(mode="json"), "vocabulary": VOCABULARY})


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("analysis") / "checkpoint"
    run_ranks(LAYOUTS[request.param].ranks, save_worker, LAYOUTS[request.param], path)
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


def test_an_export_has_the_runs_numbers(models):
    mine, theirs = (analyse(Weights(models / name, name), torch.tensor([3, 1, 4]), 6) for name in ("ngpt", "exported"))
    for one, other in zip(mine.spectra, theirs.spectra, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(mine.scales.qk, theirs.scales.qk, rtol=1e-6)
    assert [e.largest for e in mine.jacobians] == pytest.approx([e.largest for e in theirs.jacobians], rel=1e-4)


@pytest.fixture(scope="module")
def report(models):
    data = write_data(models / "data", [1, 2, 2, 3, 3, 3, 32, 5])
    run([models / "ngpt", models / "llama"], models / "report", data, 6, 5, 1e-3)
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
    with pytest.raises(ConfigError, match=r"--out: .* exists"):
        run([models / "ngpt"], report, None, 6, 5, 1e-3)
    with pytest.raises(DataError, match="holds token id 99, and ngpt knows 33"):
        run([models / "ngpt"], models / "new", write_data(models / "foreign", [1, 99]), 6, 5, 1e-3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs matplotlib"):
        run([models / "ngpt"], models / "new", None, 6, 5, 1e-3)
    assert not list(models.glob("new*"))


@pytest.mark.heavy
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium to open the report")
def test_the_report_opens_in_a_browser(report, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,3000", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "page.png"
    subprocess.run(["chromium", *options, f"--screenshot={picture}", (report / "report.html").as_uri()], check=True, timeout=120)
    assert picture.stat().st_size > 50_000
