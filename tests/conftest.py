"""Strict settings for every test: no silent promotion, no key used twice, eight virtual devices."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


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
