"""Strict settings for every test: no silent promotion, no key used twice, eight virtual devices."""

import itertools
import os

# Nearly all of the time of the tests is XLA's, compiling small programs that run once: simple code is ready in a third
# of it. `make test-all` tests the code that users get, and `make test` does so for what is marked `optimized`.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Keys are watched where they are those of jax, and not where users' code is tested: see `jaxprob.core.random`.
jax.config.update("jax_debug_key_reuse", "--xla_backend_optimization_level=0" in os.environ["XLA_FLAGS"])


# Tests that take more than 2 seconds on a quiet core, and cases of one that take more than 1.2, but for the quickest.
_SLOW = frozenset(Path(__file__).with_name("slow.txt").read_text().splitlines())


# Tests of bits, of rounding (simple code rounds otherwise in a batch of another size), and of how long XLA takes.
_OPTIMIZED = (
    "tests/runtime/",
    "tests/distributions/test_discrete.py::test_gradients_are_finite_differences_of_scipys_log_mass",
    "tests/inference/mcmc/test_chees.py::test_devices_change_no_bit",
    "tests/inference/mcmc/test_delayed_acceptance.py::test_an_exact_surrogate_makes_the_second_stage_idle",
    "tests/inference/mcmc/test_interleave.py",
    "tests/inference/diffusion/test_neural_sampler.py::test_training_that_is_stopped_and_that_crashes",
    "tests/inference/particle/test_filter.py::test_a_number_of_particles_that_nothing_divides",
)


def pytest_ignore_collect(collection_path, config):
    """Imports no file that has no test of those asked for, where these are the ones above."""
    if not config.option.markexpr.endswith(" and optimized") or not collection_path.name.startswith("test_"):
        return None
    name = collection_path.relative_to(config.rootpath).as_posix()
    return None if name.startswith(_OPTIMIZED) or any(test.startswith(name) for test in _OPTIMIZED) else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks `slow` what the list says, beside what is marked where it stands, and `optimized` what asks for bits."""
    for item in items:
        if item.nodeid in _SLOW:
            item.add_marker("slow")
        if item.nodeid.startswith(_OPTIMIZED):
            item.add_marker("optimized")


_MAPS = Path("/proc/self/maps")
_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def compiled_programs():
    """Forgets what was compiled before a process runs out of memory mappings: Linux allows it 65,530.

    A large program takes a thousand of them, and XLA aborts where there are none left.
    """
    yield
    if next(_TESTS) % 10 == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test with 64-bit arrays enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def posteriordb():
    """The folder of reference posteriors, or a skip where it does not exist."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
    if not folder.is_dir():
        pytest.skip(f"no reference posteriors at {folder}")
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)
