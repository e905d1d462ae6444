"""The examples in the docstrings of analysis."""

import doctest
import importlib
import pkgutil

import pytest

from jaxprob import analysis

SLOW = {"_laws", "_model_comparison"}  # their examples compile for seconds, and are tested in other ways
MODULES = [
    pytest.param(module.name, marks=pytest.mark.slow if module.name in SLOW else ())
    for module in pkgutil.iter_modules(analysis.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"jaxprob.analysis.{name}")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
