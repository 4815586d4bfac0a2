"""The table of metrics and the page that is written from it."""

import math
from pathlib import Path

from megatron_ngpt.monitor.table import METRICS, VALIDATION, Metric, markdown, tagged, unhealthy

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"


def test_the_page_is_current():
    assert markdown().strip() in PAGE.read_text(encoding="utf-8"), "run python -m megatron_ngpt.monitor.table and put it in"


def test_every_metric_has_a_meaning_and_no_two_have_a_tag():
    single = [(metric in VALIDATION, metric.tag) for metric in METRICS.values() if metric.tag and not metric.by]
    assert len(single) == len(set(single)) and all(metric.meaning for metric in METRICS.values())


def test_a_value_is_healthy_between_its_bounds():
    bounded = Metric("x", "", "", low=0.0, high=1.0)
    assert [bounded.healthy(number) for number in (-0.1, 0.0, 1.0, 1.1, math.nan)] == [False, True, True, False, False]
    assert Metric("x", "", "").healthy(1e9) and not Metric("x", "", "").healthy(math.nan)


def test_what_is_out_of_its_range_is_said_with_the_range():
    by_name = {"web": math.nan, "code": 1.0}
    values = {"max_norm_error": 0.5, "loss": math.inf, "grad_norm": math.nan, "valid": by_name, "lr": None, "more": -1.0}
    assert unhealthy(values) == {
        "max_norm_error": "max_norm_error = 0.5: healthy is 0 to 1e-06",
        "grad_norm": "grad_norm = nan: healthy is a finite number",
        "valid/web": "valid/web = nan: healthy is a finite number",
    }


def test_numbers_out_of_their_range_are_named_wherever_they_are_in_a_value():
    values = {"alpha_mlp": [0.3, 2.0], "step_angle": {"q": [0.1, 0.5], "lm_head": 0.4}, "s_z": 1.0, "loss": math.nan, "lr": None}
    assert set(unhealthy(values)) == {"alpha_mlp/1", "step_angle/q/1", "step_angle/lm_head", "loss"}


def test_layers_and_matrices_by_their_tags():
    found = tagged({"s_u": [1.0, 2.0], "step_angle": {"q": [0.1, 0.3], "lm_head": 0.4}, "epochs": {"text": 0.5}})
    assert found == {"s_u/mean of layers": 1.5, "s_u/layer 000": 1.0, "s_u/layer 001": 2.0, "step_angle/q": 0.2,
                     "step_angle/lm_head": 0.4, "training/epochs/text": 0.5}  # fmt: skip


def test_values_by_their_tags():
    values = {"max_norm_error": None, "nothing we know": 1.0, "valid_loss": 3.0, "valid": {"web": 2.5, "code": 3.5}}
    assert tagged(values) == {"1 health/loss": 3.0, "validation/web": 2.5, "validation/code": 3.5}
    assert tagged({"valid_loss": 3.0, "valid": {"web": 3.0}}) == {"1 health/loss": 3.0}
