"""The examples in the docstrings of all that trains do what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

from jaxprob import learning

NAMES = [module.name for module in pkgutil.walk_packages(learning.__path__, "jaxprob.learning.")]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = importlib.import_module(name)
    with jax.numpy_dtype_promotion("standard"):  # as it is for whoever reads them
        assert doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}).failed == 0
