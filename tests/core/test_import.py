"""`import jaxprob` is free; using a namespace starts no backend; every docstring example runs."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxprob.core

NAMESPACES = ["core", "scan", "distributions", "models", "inference", "learning", "analysis", "runtime"]
HEAVY = {"distrax", "tensorflow_probability", "flax", "orbax", "tensorstore", "matplotlib", "xarray", "rich"}


def fresh(code):
    """Runs code in a new interpreter and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_alone_loads_nothing():
    loaded = fresh("import sys, jaxprob; print(*sys.modules)").split()
    assert not {"jax", "jaxlib", "numpy", *HEAVY} & set(loaded)


def test_names_are_listed_without_loading():
    code = "import sys, jaxprob; names = dir(jaxprob); print('jax' in sys.modules, *names)"
    loaded, *names = fresh(code).split()
    assert loaded == "False"
    assert set(NAMESPACES) | {"fit", "sample", "__version__"} <= set(names)


def test_namespaces_start_no_backend():
    """Every namespace is imported, none makes an array, and the heavy optional libraries stay out."""
    code = f"""
import sys, jaxprob
for name in {NAMESPACES}:
    getattr(jaxprob, name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
print(*sys.modules)
"""
    backends, loaded = fresh(code).splitlines()
    assert backends == "False"
    assert not HEAVY & set(loaded.split())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        jaxprob.nonsense


MODULES = [module.name for module in pkgutil.iter_modules(jaxprob.core.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"jaxprob.core.{name}")
    names = {"jax": jax, "jnp": jnp}
    results = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_docstring_examples_are_found():
    """Functions with a custom derivative are looked into as well."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    scalars = importlib.import_module("jaxprob.core._scalars")
    found = {test.name.split(".")[-1] for test in finder.find(scalars) if test.examples}
    assert {"log1mexp", "softplus", "sqrt_one_minus_exp", "xlogy"} <= found


def test_every_public_name_has_a_docstring():
    public = {name: getattr(jaxprob.core, name) for name in dir(jaxprob.core) if not name.startswith("_")}
    documented = {name: value.__doc__ for name, value in public.items() if callable(value) and name != "LogDensity"}
    assert [name for name, text in documented.items() if not text] == []
