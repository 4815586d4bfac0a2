"""Every module of the project can be imported: also those that no other test of a change happens to touch."""

import importlib
import pkgutil

import pytest

import data_tools
import megatron_ngpt

MODULES = [
    found.name
    for package in (megatron_ngpt, data_tools)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if ".remote." not in found.name and not found.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name):
    importlib.import_module(name)
