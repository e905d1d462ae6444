"""What every distribution must withstand as a pytree, checked for a row: how it is built, from what, and a value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

QUICK = {"xla_backend_optimization_level": 0}


class Row(NamedTuple):
    """One distribution under test.

    Attributes:
      build: from a dictionary of parameters to a distribution.
      theta: parameters, each with a leading axis of three settings; floating ones are differentiated.
      value: one value inside the support of every setting.
    """

    build: Callable[[dict[str, Any]], Any]
    theta: dict[str, Any]
    value: Any


def check_pytree(row: Row, dtype: Any = np.float32) -> None:
    """Built under vmap equals a loop; returned from jit; carried in a scan; gradients finite; draws and dtypes kept."""
    theta = {
        name: jnp.asarray(np.asarray(x, None if np.asarray(x).dtype.kind == "i" else dtype))
        for name, x in row.theta.items()
    }
    value = jnp.asarray(row.value)
    value = value if jnp.issubdtype(value.dtype, jnp.integer) else value.astype(dtype)
    floating = {name: x for name, x in theta.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731

    @partial(jax.jit, compiler_options=QUICK)
    def program(theta, floating, value, key):
        batch = jax.vmap(row.build)(theta)
        one = row.build(at(theta, 0))

        def step(carried, _):
            return carried, carried.log_prob(value)

        last, twice = jax.lax.scan(step, one, None, length=2)
        total = lambda floating: jax.vmap(lambda t: row.build(t).log_prob(value))({**theta, **floating}).sum()  # noqa: E731
        wide = jax.vmap(lambda d: d.log_prob(value))(batch)
        return {
            "batch": batch,
            "last": last,
            "twice": twice,
            "wide": wide,
            "loop": jnp.stack([row.build(at(theta, i)).log_prob(value) for i in range(3)]),
            "gradient": jax.grad(total)(floating),
            "draws": one.sample(key, (2,)),
            "mapped_draws": jax.vmap(lambda d, k: d.sample(k))(batch, jax.random.split(key, 3)),
        }

    with jax.debug_key_reuse(False):  # One key drives two samplers, which are not compared.
        found = program(theta, floating, value, jax.random.key(3))

    eager = row.build(at(theta, 0))
    assert jax.tree.structure(eager) == jax.tree.structure(found["last"])
    expected = found["loop"]
    assert bool(jnp.isfinite(expected).all())
    assert expected.dtype == dtype
    np.testing.assert_allclose(found["wide"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["twice"][1], expected[0], rtol=1e-5, atol=1e-5)
    # What was returned from jit is an ordinary distribution, and the one built under vmap a batch.
    batch = found["batch"]
    assert batch.batch_shape == (3, *eager.batch_shape)
    assert batch.event_shape == eager.event_shape
    np.testing.assert_allclose(
        jax.jit(lambda d, x: d.log_prob(x), compiler_options=QUICK)(batch, value), expected, rtol=1e-5, atol=1e-5
    )
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found["gradient"]))
    assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(found["gradient"])) or not floating
    assert found["draws"].shape == (2, *eager.shape)
    assert found["mapped_draws"].shape == (3, *eager.shape)
    kind = np.dtype(int if eager.is_discrete and value.dtype != dtype else dtype)
    assert found["draws"].dtype == jax.dtypes.canonicalize_dtype(kind)
    assert bool(eager.support.contains(found["draws"]).all())


def check_checkpoint(rows: dict[str, Row], folder: Any) -> None:
    """Every distribution of a table comes back from an orbax checkpoint as it was."""
    from orbax.checkpoint import v1 as ocp

    def first(x: Any) -> jax.Array:
        x = np.asarray(x)[0]
        return jnp.asarray(x if x.dtype.kind == "i" else x.astype(np.float32))

    saved = {name: row.build({k: first(x) for k, x in row.theta.items()}) for name, row in rows.items()}
    ocp.save(folder / "all", saved)
    loaded = ocp.load(folder / "all", saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for before, after in zip(jax.tree.leaves(saved), jax.tree.leaves(loaded), strict=True):
        assert jnp.result_type(before) == jnp.result_type(after)
        np.testing.assert_array_equal(before, after)


def chi_square(draws: np.ndarray, frozen: Any, low: int, high: int, bins: int = 40) -> float:
    """The p-value of Pearson's test of counts against a SciPy distribution, in bins of equal width from low to high."""
    from scipy import stats

    edges = np.unique(np.linspace(low, high, min(bins, high - low + 1) + 1).astype(int))
    edges = np.concatenate([[-1], edges, [np.inf]])
    counts = np.histogram(draws, bins=edges + 0.5)[0]
    expected = np.diff(frozen.cdf(edges)) * len(draws)
    keep = expected > 5
    rest = np.array([counts[~keep].sum(), expected[~keep].sum()])
    counts, expected = np.append(counts[keep], rest[0]), np.append(expected[keep], rest[1])
    if expected[-1] < 5:
        counts, expected = counts[:-1], expected[:-1]
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def distance(draws: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """The Kolmogorov distance of draws from a cdf."""
    u, n = cdf(np.sort(draws)), len(draws)
    return max((np.arange(1, n + 1) / n - u).max(), (u - np.arange(n) / n).max())
