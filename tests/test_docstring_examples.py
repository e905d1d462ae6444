"""The examples in the docstrings of all that conditions on data, of models and of the rest do what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxprob

NAMES = [module.name for module in pkgutil.walk_packages(jaxprob.__path__, "jaxprob.") if "__main__" not in module.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}, optionflags=flags).failed == 0
