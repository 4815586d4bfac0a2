"""Reading recipes: types, overrides, and what is said about mistakes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config import text
from megatron_ngpt.config.load import dump_recipe, load_recipe, read_recipe
from megatron_ngpt.config.mistakes import every_key
from megatron_ngpt.errors import ConfigError

SMALLEST = """
data:
  tokenizer: t.model
  train: [{prefix: corpus}]
training: {output: runs/x}
"""


@pytest.fixture
def recipe_file(tmp_path):
    """Writes a recipe and returns its path."""

    def write(content: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def test_defaults_fill_what_the_file_leaves_out(recipe_file):
    recipe = load_recipe(recipe_file(SMALLEST))
    assert (recipe.model.arch, recipe.optimizer.lr, recipe.optimizer.betas) == ("ngpt", 15e-4, [0.9, 0.95])
    assert recipe.model.scales.alpha.init == 0.05 and recipe.model.scales.alpha.scale is None
    assert recipe.model.scales.gate.scale == 1.0 and recipe.data.valid == []


@pytest.mark.parametrize(("written", "read"), [
    ("15e-4", 15e-4), ("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("5.", 5.0), ("-2.5e+1", -25.0), ("3", 3), ("010", 10),
    ("+7", 7), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("0x10", "0x10"), ("1_000", "1_000"), ("2020-01-01", "2020-01-01"),
    ("true", True), ("False", False), ("null", None), ("~", None), ("", None), (".inf", ".inf"), ("'1'", "1"), ("nope", "nope"),
])
def test_scalars_have_the_types_of_yaml_1_2(written, read):
    value = text.parse(f"key: {written}", "test")["key"]
    assert (type(value), value) == (type(read), read)


def test_whole_numbers_are_numbers_but_not_the_other_way_round(recipe_file):
    assert load_recipe(recipe_file(SMALLEST), ["--optimizer.clip=1"]).optimizer.clip == 1.0
    for value in ("1.0", "true", "'1'"):
        assert problems(recipe_file(SMALLEST), f"--model.layers={value}")[0].startswith("model.layers = ")
    assert "must be a number" in problems(recipe_file(SMALLEST), "--optimizer.clip=true")[0]
    assert "must be a number" in problems(recipe_file(SMALLEST), "--optimizer.lr='1e-3'")[0]


def test_overrides_reach_sections_lists_and_keys_outside_sections(recipe_file):
    recipe = load_recipe(recipe_file(SMALLEST), [
        "--model.scales.alpha.init=0.1", "--data.train.0.weight=2", "--data.train.1.prefix=other", "--data.train.1.weight=3e-1",
        "--data.valid.0.prefix=held", "--deepspeed=ds_configs/zero2.json", "--optimizer.betas=[0.8, 0.9]",
        "--model.kv_heads=null", "--training.output=a=b",
    ])
    assert recipe.model.scales.alpha.init == 0.1
    assert [(entry.prefix, entry.weight) for entry in recipe.data.train] == [("corpus", 2.0), ("other", 0.3)]
    assert recipe.data.valid[0].prefix == "held" and recipe.deepspeed == "ds_configs/zero2.json"
    assert recipe.optimizer.betas == [0.8, 0.9] and recipe.model.kv_heads is None and recipe.training.output == "a=b"


def test_a_later_override_wins_and_a_section_may_be_empty(recipe_file):
    recipe = load_recipe(recipe_file(SMALLEST + "checkpoint:\n"), ["--training.steps=5", "--training.steps=6"])
    assert recipe.training.steps == 6 and recipe.checkpoint.resume == "auto"


@pytest.mark.parametrize(("override", "said"), [
    ("--model.hiden=3", "model.hiden = 3: unknown key; did you mean model.hidden?"),
    ("--model.lr=3", "model.lr = 3: unknown key; did you mean optimizer.lr?"),
    ("--modle.layers=3", 'modle = {"layers": 3}: unknown key; did you mean model?'),
    ("--data.train.0.pth=3", "data.train.0.pth = 3: unknown key; choose from prefix, weight, split, name"),
    ("--model.arch=llama", "model.arch = \"llama\": choose 'ngpt' or 'gpt'"),
    ("--model.layers=0", "model.layers = 0: must be greater than 0 (number of blocks)"),
    ("--training.seed=-1", "training.seed = -1: must be at least 0"),
    ("--training.steps=18446744073709551616", "training.steps = 18446744073709551616: must be less than 2147483648"),
    ("--model.layers=18446744073709551616", "model.layers = 18446744073709551616: must be less than 2147483648"),
    ("--checkpoint.every=99999999999", "checkpoint.every = 99999999999: must be less than 2147483648"),
    ("--training.seed=9223372036854775808", "training.seed = 9223372036854775808: must be less than 9223372036854775808"),
    ("--optimizer.lr=1e999", "optimizer.lr = Infinity: must be a finite number"),
    ("--optimizer.betas=[0.9]", "optimizer.betas = [0.9]: must have at least 2 entries"),
    ("--optimizer.betas=[0.9, 1.0]", "optimizer.betas.1 = 1.0: must be less than 1"),
    ("--optimizer.betas.1=0.9", "--optimizer.betas.1: the recipe has no list here yet"),
    ("--data.train=[]", "data.train = []: must have at least 1 entries"),
    ("--data.train=corpus", 'data.train = "corpus": must be a list'),
    ("--data.train.0=corpus", 'data.train.0 = "corpus": must be a mapping'),
    ("--data.train.0.split=1", "data.train.0.split = 1: must be less than 1"),
    ("--parallel.sequence=1", "parallel.sequence = 1: must be true or false"),
    ("--training.output=", 'training.output = "": must not be empty'),
    ("--data.train.2.prefix=x", "--data.train.2.prefix: '2' is no place in a list of 1; choose 0 to 1"),
    ("--training.output.x=1", "--training.output.x: \"runs/x\" has no key 'x'"),
    ("--model.layers", "--model.layers: write --model.layers=VALUE, with the = sign"),
    ("--data.train=[", "--data.train:1: not YAML: "),
])
def test_a_mistake_is_one_line_with_key_value_and_remedy(recipe_file, override, said):
    found = problems(recipe_file(SMALLEST), override)
    assert len(found) == 1 and found[0].startswith(said), found


def test_missing_keys_and_several_mistakes_are_told_at_once(recipe_file):
    found = problems(recipe_file("model: {layers: x, hiden: 1}\n"), "--optimizer.clip=-1", "--oops")
    assert len(found) == 7
    missing = ["data.tokenizer: missing", "data.train: missing", "training.output: missing"]
    for start in ["--oops", "model.layers", "model.hiden", "optimizer.clip", *missing]:
        assert any(line.startswith(start) for line in found), (start, found)


@pytest.mark.parametrize(("content", "line", "said"), [
    ("model:\n  layers: 2\n  layers: 3\n", ":3", "key 'layers' is given twice"),
    ("model: {a: 1\ntraining: }", ":2", "not YAML"),
    ("model:\n\tlayers: 2\n", ":2", "not YAML"),
    ("- 1\n", "", "a recipe is a mapping of sections"),
    ("model: *nowhere\n", ":1", "not YAML"),
    ("model: !!python/object:os.system {}\n", ":1", "not YAML"),
])
def test_a_file_that_is_no_recipe_is_named_with_its_line(recipe_file, content, line, said):
    path = recipe_file(content)
    found = problems(path)
    assert found[0].startswith(f"{path}{line}: ") and said in found[0] and len(found) == 1, found


def test_an_unreadable_file_is_one_line(tmp_path):
    assert "No such file" in problems(str(tmp_path / "none.yaml"))[0]
    assert "Is a directory" in problems(str(tmp_path))[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problems(str(tmp_path / "binary.yaml"))[0]


def test_what_is_right_survives_beside_mistakes(recipe_file):
    reading = read_recipe(recipe_file(SMALLEST), ["--model.layers=x", "--model.heads=8", "--model.foo=1"])
    assert reading.recipe.model.heads == 8 and reading.recipe.model.layers == 4
    assert reading.replaced == ["model.layers"] and len(reading.problems) == 2


@given(st.text(min_size=1).filter(lambda name: name.isprintable()), st.floats(1e-300, 1e300), st.integers(1, 2**31 - 1))
def test_a_dumped_recipe_reads_back_unchanged(tmp_path_factory, output, lr, steps):
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(SMALLEST)
    recipe = load_recipe(str(path))
    recipe = recipe.model_copy(update={
        "training": recipe.training.model_copy(update={"output": output, "steps": steps}),
        "optimizer": recipe.optimizer.model_copy(update={"lr": lr}),
    })
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_a_string_that_looks_like_a_number_is_quoted():
    for string in ("1e-3", "010", "null", "yes", "1:30", "0x1f"):
        assert text.parse(text.write({"key": string}), "test") == {"key": string}
        assert "'" in text.write({"key": string})


def test_every_key_is_listed_once():
    keys = every_key()
    assert len(keys) == len(set(keys))
    assert {"model.scales.logit.scale", "data.train.N.prefix", "optimizer.betas", "deepspeed"} <= set(keys)


@pytest.mark.parametrize("word", ["/x/exp #1", "2024", "1e3", "true", "null", "[a]", "a: b", "'quoted'", "{x}", " spaced "])
def test_for_a_key_of_text_the_shells_word_is_the_text(recipe_file, word):
    assert load_recipe(recipe_file(SMALLEST), [f"--training.output={word}"]).training.output == word


def test_other_values_are_yaml_and_null_is_nothing_where_that_may_be(recipe_file):
    options = ["--checkpoint.initial=null", "--data.train=[{prefix: a, weight: 2e0}]", "--data.train.0.prefix=b #2", "--deepspeed=3"]
    recipe = load_recipe(recipe_file(SMALLEST), options)
    assert recipe.checkpoint.initial is None and recipe.deepspeed == "3"
    assert recipe.data.train[0].model_dump() == {"prefix": "b #2", "weight": 2.0, "split": None, "name": None}
