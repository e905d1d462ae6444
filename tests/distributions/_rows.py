"""What every distribution must withstand as a pytree, checked for a row: how it is built, from what, and a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def quick(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiled without LLVM's optimisations, which take most of the time and change no rounding."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


# Methods as compiled functions of a distribution: run op by op they take far longer.
log_prob = quick(lambda distribution, x: distribution.log_prob(x))
cdf = quick(lambda distribution, x: distribution.cdf(x))
quantile = quick(lambda distribution, u: distribution.quantile(u))
moments = quick(lambda distribution: (distribution.mean(), distribution.variance()))
contains = quick(lambda distribution, x: distribution.support.contains(x))
sample = quick(lambda distribution, key, shape: distribution.sample(key, shape), static_argnums=2)


class Row(NamedTuple):
    """One distribution under test.

    Attributes:
      build: from a dictionary of parameters to a distribution.
      theta: parameters, each with a leading axis of three settings; floating ones are differentiated.
      value: one value inside the support of every setting.
      variant: another parametrisation of a class in the table: its checkpoint is enough.
    """

    build: Callable[[dict[str, Any]], Any]
    theta: dict[str, Any]
    value: Any
    variant: bool = False


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

    @quick
    def program(theta, floating, value, keys):
        batch = jax.vmap(row.build)(theta)

        def step(carried, _):
            return carried, carried.log_prob(value)

        last, twice = jax.lax.scan(step, row.build(at(theta, 0)), None, length=2)
        total = lambda floating: jax.vmap(lambda t: row.build(t).log_prob(value))({**theta, **floating}).sum()  # noqa: E731
        draws = jax.vmap(lambda d, k: d.sample(k, 2))(batch, keys)
        inside = jax.vmap(lambda d, x: d.support.contains(x))(batch, draws)
        return batch, last, twice, jax.grad(total)(floating), draws, inside

    batch, last, twice, gradient, draws, inside = program(
        theta, floating, value, jax.random.split(jax.random.key(3), 3)
    )
    loop = [row.build(at(theta, i)) for i in range(3)]
    expected = jnp.stack([log_prob(one, value) for one in loop])
    assert bool(jnp.isfinite(expected).all())
    assert expected.dtype == dtype
    assert jax.tree.structure(loop[0]) == jax.tree.structure(last)
    np.testing.assert_allclose(twice[1], expected[0], rtol=1e-5, atol=1e-5)
    # What was built under vmap and returned from jit is an ordinary distribution: a batch.
    assert batch.batch_shape == (3, *loop[0].batch_shape)
    assert batch.event_shape == loop[0].event_shape
    np.testing.assert_allclose(log_prob(batch, value), expected, rtol=1e-5, atol=1e-5)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient))
    assert draws.shape == (3, 2, *loop[0].shape)
    assert draws.dtype == (jnp.result_type(int) if jnp.issubdtype(value.dtype, jnp.integer) else dtype)
    assert bool(inside.all())


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
