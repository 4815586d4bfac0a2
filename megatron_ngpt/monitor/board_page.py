"""What TensorBoard is told before the first step: the recipe's text, hyper-parameters, and which curves share a chart."""

import re
from collections.abc import Iterator

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto

from megatron_ngpt.config.load import by_key, dump_recipe
from megatron_ngpt.monitor.logger import RunInfo
from megatron_ngpt.monitor.table import METRICS

IN_TRAINING = "validation/loss"  # the validation loss once more, in the run `training`: the tab HParams looks for it nowhere else
COMPARED = ("model.", "parallel.", "optimizer.", "schedule.", "training.", "deepspeed")  # how the keys begin that are hyper-parameters
FIRST = ("model.arch", "model.hidden", "model.layers", "optimizer.lr", "training.global_batch")  # the five columns that are seen at once
ELSEWHERE = ("training.output", "training.profile")  # of those, what makes no other model


def front_matter(run: RunInfo) -> Iterator[Summary]:
    """The summaries that the run `training` begins with."""
    yield text_pb("recipe", verbatim(dump_recipe(run.recipe), "yaml"))
    found = hyper_parameters(run.recipe.model_dump(mode="json"))
    losses = [Metric(METRICS["loss"].tag, display_name="loss"), Metric(IN_TRAINING, display_name="validation loss")]
    yield _experiment(found, losses)
    yield hparams_pb(found, trial_id=str(run.output))
    yield layout()


def hyper_parameters(recipe: dict) -> dict[str, bool | float | str]:
    """The keys of a recipe by which runs are compared, with their values."""
    known = {key: value for key, value in by_key(recipe).items() if key.startswith(COMPARED) and not key.startswith(ELSEWHERE)}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in known.items() if value is not None}


def _experiment(found: dict, losses: list[Metric]) -> Summary:
    """Which hyper-parameters and losses the tab HParams has. It shows those first that differ, as far as it is told."""
    summary = hparams_config_pb([HParam(name) for name in found], losses)
    [value] = summary.value
    experiment = hparams.parse_experiment_plugin_data(value.metadata.plugin_data.content)
    for info in experiment.hparam_infos:
        info.differs = info.name in FIRST
    value.metadata.CopyFrom(hparams.create_summary_metadata(HParamsPluginData(experiment=experiment)))
    return summary


def layout() -> Summary:
    """Of the tab Custom Scalars: a section for each group of tags, in it a chart for each unit."""
    charts: dict[str, dict[str, dict[str, None]]] = {}
    for metric in METRICS.values():
        if metric.tag:
            pattern = f"^{re.escape(metric.tag)}{'/.*' if metric.by else '$'}"
            charts.setdefault(metric.tag.partition("/")[0], {}).setdefault(metric.unit, {})[pattern] = None  # of two runs
    sections = [
        layout_pb2.Category(
            title=group,
            chart=[
                layout_pb2.Chart(title=unit or "numbers", multiline=layout_pb2.MultilineChartContent(tag=list(tags)))
                for unit, tags in units.items()
            ],
        )
        for group, units in sorted(charts.items())
    ]
    content = layout_pb2.Layout(category=sections).SerializeToString()
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG, tensor=make_tensor_proto(content), metadata=metadata.create_summary_metadata()
    )
    return Summary(value=[value])


def verbatim(text: str, language: str = "") -> str:
    """The text as Markdown that shows every character of it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
