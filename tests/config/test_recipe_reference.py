"""The help and the page that lists every key."""

from pathlib import Path

from megatron_ngpt.config.mistakes import every_key
from megatron_ngpt.config.reference import help_text, markdown, sections

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_current():
    assert markdown().strip() in PAGE.read_text(encoding="utf-8"), "run python -m megatron_ngpt.config.reference and put it in"


def test_every_key_has_a_meaning_and_a_default_in_the_help():
    listed = {key.name: key for _, keys in sections().values() for key in keys}
    assert set(every_key()) <= set(listed)
    assert all(key.meaning for key in listed.values())
    assert listed["data.tokenizer"].default == "required" and listed["model.scales.alpha.init"].default == "0.05"
    assert listed["model.kv_heads"].kind == "whole number or null" and listed["optimizer.betas"].kind == "list of numbers"
    for name in listed:
        assert f"  {name} (" in help_text()
