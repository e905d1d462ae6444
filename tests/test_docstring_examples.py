"""The examples in the docstrings of models, and of what conditions on data and trains, do what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxprob

FOLDERS = ("jaxprob.inference", "jaxprob.models")  # the others have tests of their own examples, but for
QUICK = "jaxprob.learning"
NAMES = [
    pytest.param(module.name, marks=() if module.name.startswith(QUICK) else pytest.mark.slow)
    for module in pkgutil.walk_packages(jaxprob.__path__, "jaxprob.")
    if module.name.startswith((*FOLDERS, QUICK))
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    with jax.numpy_dtype_promotion("standard"):  # as it is for whoever reads them
        assert doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}, optionflags=flags).failed == 0
