"""DeepSpeed's JSON: what it may choose, what the recipe owns, and that DeepSpeed takes every shipped file."""

import json
from pathlib import Path

import pytest

from megatron_ngpt.config.deepspeed_json import OFFLOAD, ZERO, DeepSpeedChoice, engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Data, Dataset, Optimizer, Recipe, Training
from megatron_ngpt.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
RECIPE = Recipe(
    data=Data(tokenizer="t", train=[Dataset(prefix="p")]), optimizer=Optimizer(clip=0.5),
    training=Training(output="o", global_batch=24, micro_batch=2),
)


@pytest.fixture
def written(tmp_path):
    """Writes a JSON file and returns its path."""

    def write(content) -> str:
        path = tmp_path / "choice.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_the_shipped_files_choose_what_their_names_say():
    names = {"zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "bf16-zero1", "bf16-zero2", "bf16-zero3",
             "bf16-zero2-offload", "bf16-zero3-offload"}
    assert {path.stem for path in SHIPPED} == names
    for path in SHIPPED:
        choice = read_deepspeed(str(path))
        stage = int(path.stem.split("zero")[1][0])
        assert (choice.zero_stage, choice.bf16, choice.offload) == (stage, "bf16" in path.stem, "offload" in path.stem)
        assert choice.raw["zero_optimization"].get("overlap_comm", False) is (stage == 3)


def test_deepspeed_takes_every_shipped_file_with_the_recipes_values():
    from deepspeed.runtime.config import DeepSpeedConfig

    assert len(SHIPPED) == 11
    for path in SHIPPED:
        choice = read_deepspeed(str(path))
        config = DeepSpeedConfig(engine_config(RECIPE, choice, 1))
        assert config.zero_config.stage == choice.zero_stage and config.bfloat16_config.enabled == choice.bf16
        assert config.gradient_accumulation_steps == 12 and config.train_batch_size == 24
        assert config.zero_allow_untested_optimizer is True and config.zero_force_ds_cpu_optimizer is False
        assert config.grad_accum_dtype == "fp32" and config.gradient_clipping == 0
        assert not config.bfloat16_config.enabled or not config.bfloat16_config.check_grad_overflow
        assert not config.timers_config.enabled
        assert config.pipeline["pipe_partitioned"] is False and config.pipeline["grad_partitioned"] is False
        assert not config.float16_config.enabled and config.steps_per_print > 10**9 and not config.wall_clock_breakdown


def test_the_known_keys_are_deepspeeds_own():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert set(ZERO) <= {field.alias or name for name, field in fields.items()}
    assert set(OFFLOAD) <= set(DeepSpeedZeroOffloadOptimizerConfig.model_fields)


def test_choices_may_tune_but_the_recipe_keeps_its_own(written):
    choice = read_deepspeed(written({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}, "steps_per_print": 7}))
    config = engine_config(RECIPE, choice, 3)
    assert config["gradient_accumulation_steps"] == 4 and config["train_micro_batch_size_per_gpu"] == 2
    assert config["steps_per_print"] == 7 and config["zero_optimization"]["reduce_bucket_size"] == 5e8
    assert choice == DeepSpeedChoice(2, False, False, choice.raw) and choice.name == "ZeRO-2 fp32"
    assert read_deepspeed(written("{}")).zero_stage == 0


@pytest.mark.parametrize(("content", "said"), [
    ({"train_batch_size": 4}, "train_batch_size is the recipe's: remove it there and set training.global_batch"),
    ({"train_micro_batch_size_per_gpu": 4}, "set training.micro_batch"),
    ({"gradient_accumulation_steps": 4}, "set training.global_batch and training.micro_batch"),
    ({"gradient_clipping": 1.0}, "set optimizer.clip"),
    ({"optimizer": {"type": "Adam"}}, "set the recipe's section optimizer"),
    ({"scheduler": {}}, "set the recipe's section schedule"),
    ({"fp16": {"enabled": True}}, "fp16 is not supported: choose bf16"),
    ({"zero_optimisation": {"stage": 2}}, "zero_optimisation is not supported; did you mean zero_optimization?"),
    ({"zero_optimization": {"stages": 2}}, "zero_optimization.stages is not supported; did you mean stage?"),
    ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4: choose 0, 1, 2 or 3"),
    ({"zero_optimization": {"stage": True}}, "zero_optimization.stage = true: must be a whole number"),
    ({"zero_optimization": 2}, "zero_optimization = 2: must be an object"),
    ({"zero_optimization": {"stage": 2, "overlap_comm": "no"}}, 'zero_optimization.overlap_comm = "no": must be true or false'),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, 'device = "nvme": choose cpu or none'),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer = \"cpu\": must be an object"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"ratio": 0.5}}}, "offload_optimizer.ratio is not supported"),
    ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs ZeRO"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "offload_param is not supported"),
    ({"bf16": {"enabled": 1}}, "bf16.enabled = 1: must be true or false"),
    ({"bf16": True}, "bf16 = true: must be an object"),
    ({"communication_data_type": "fp8"}, 'communication_data_type = "fp8": choose fp32 or bf16'),
    ('{"bf16": {"enabled": true}, "bf16": {}}', "key 'bf16' is given twice"),
    ('{"bf16":\n {"enabled": yes}}', ":2: not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ("[1]", "holds no JSON object"),
])
def test_what_is_refused(written, content, said):
    path = written(content)
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(path)
    assert len(caught.value.problems) == 1 and said in str(caught.value) and path in str(caught.value)


def test_several_mistakes_at_once_and_a_missing_file(written, tmp_path):
    path = written({"optimizer": {}, "fp16": {}, "bf16": {"on": 1}})
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(path)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match=r"no such file; .* has choice.json"):
        read_deepspeed(str(tmp_path / "other.json"))


def test_a_name_means_the_shipped_file_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in SHIPPED:
        assert read_deepspeed(path.stem) == read_deepspeed(str(path))
    (tmp_path / "zero1").write_text("{}")
    assert read_deepspeed("zero1").zero_stage == 1 and read_deepspeed("./zero1").zero_stage == 0


@pytest.mark.parametrize(("given", "said"), [
    ("zero9", "deepspeed = zero9: no such file; give a path, or one of bf16-zero1, "),
    ("ds_configs/zero1.json", "no such file; zero1, alone, names the one that comes with the package"),
    ("bf16-zero2.json", "no such file; bf16-zero2, alone, names the one that comes with the package"),
])
def test_a_file_that_is_not_there_tells_the_name_to_give(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        read_deepspeed(given)
