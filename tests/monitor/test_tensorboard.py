"""What TensorBoard reads of a run besides its curves, by TensorBoard's own plugins."""

import io

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from megatron_ngpt.config.load import dump_recipe
from megatron_ngpt.monitor.board_page import FIRST, hyper_parameters, verbatim
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.monitor.table import METRICS
from tests.monitor.recipes import recipe


def told(folder, start=0) -> EventAccumulator:
    """What a run that begins after step `start` has told before its first step, and of a sample."""
    monitor = Monitor(recipe(folder), start, 0, io.StringIO())
    monitor.text(start + 5, "sample", "Once ``` upon")
    monitor.close()
    return EventAccumulator(str(folder / "training"), tensor_size_guidance={"text": 0}).Reload()


def texts(events: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)]


def test_the_recipe_and_samples_are_texts(tmp_path):
    events = told(tmp_path)
    assert texts(events, "recipe") == [(0, verbatim(dump_recipe(recipe(tmp_path)), "yaml"))]
    assert texts(events, "sample") == [(5, "````\nOnce ``` upon\n````")]
    assert set(events.PluginTagToContent("text")) == {"recipe", "sample"}


def test_texts_of_a_resumed_run_replace_those_that_are_void(tmp_path):
    told(tmp_path)
    events = told(tmp_path, start=3)
    assert [step for step, _ in texts(events, "sample")] == [8] and [step for step, _ in texts(events, "recipe")] == [0, 3]


def test_a_run_that_starts_over_begins_its_curves_anew(tmp_path):
    told(tmp_path)
    assert [step for step, _ in texts(told(tmp_path), "sample")] == [5]


def test_hyper_parameters(tmp_path):
    content = told(tmp_path).PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert started.hparams["model.hidden"].number_value == 256 and started.hparams["model.arch"].string_value == "ngpt"
    assert started.hparams["deepspeed"].string_value == "zero1" and started.hparams["optimizer.tangent"].HasField("bool_value")
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [(metric.name.group, metric.name.tag) for metric in experiment.metric_infos] == [
        ("", METRICS["loss"].tag), ("", "validation/loss"),
    ]
    assert sorted(info.name for info in experiment.hparam_infos if info.differs) == sorted(FIRST)
    found = hyper_parameters(recipe(tmp_path).model_dump(mode="json"))
    assert "training.output" not in found and found["optimizer.betas"] == "[0.9, 0.95]" and found["model.scales.alpha.init"] == 0.05


def test_the_layout_has_every_tag_once(tmp_path):
    events = told(tmp_path)
    [event] = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert len(patterns) == len(set(patterns)) == len({(metric.tag, bool(metric.by)) for metric in METRICS.values() if metric.tag})
    assert [category.title for category in layout.category][:2] == ["1 health", "2 pace"]
