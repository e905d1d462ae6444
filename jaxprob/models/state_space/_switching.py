"""Switching linear dynamics: a chain of regimes that are not seen, each with a linear-Gaussian model of its own.

    z_0 ~ initial,   z_{t+1} | z_t ~ transition[z_t],   x_0 | z_0 = k ~ N(m_k, P_k)
    x_{t+1} = F_k x_t + b_k + N(0, Q_k) where k = z_{t+1},   y_t = H_k x_t + d_k + N(0, R_k) where k = z_t

The state is handed on from one regime to the next: it is the regime entered that moves it.
Source: Kim (1994), "Dynamic linear models with Markov-switching".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.models.state_space._linear_gaussian import LinearGaussian

NAME = "SwitchingLinearGaussian"


@core.pytree
class SwitchingLinearGaussian:
    """A switching linear-Gaussian model of K regimes.

    Attributes:
      initial: (K,), probabilities of the regime at the first observation.
      transition: (K, K), row i the probabilities of the next regime after regime i.
      models: K `LinearGaussian` of the same sizes, in which nothing varies in time and nothing is diffuse; kept as one
        whose entries have a leading axis K, which is taken as well.

    Raises:
      TypeError: if the models are none.
      ValueError: if sizes do not fit, or values that are known are no probabilities.

    >>> calm = LinearGaussian(jnp.zeros(1), jnp.eye(1), 0.9 * jnp.eye(1), 0.1 * jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> wild = LinearGaussian(jnp.zeros(1), jnp.eye(1), 0.9 * jnp.eye(1), 4.0 * jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> model = SwitchingLinearGaussian([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], [calm, wild])
    >>> model.regime_size, model.state_size, model.models.dynamics_covariance.shape
    (2, 1, (2, 1, 1))
    """

    initial: Any
    transition: Any
    models: Any

    def __post_init__(self) -> None:
        models = self.models if isinstance(self.models, LinearGaussian) else tuple(self.models)
        for model in models if isinstance(models, tuple) else (models,):
            if not isinstance(model, LinearGaussian):
                raise core.bad_type(NAME, "models", model, "LinearGaussian models")
            if model.time_varying or model.diffuse_size:
                got = f"{model.time_varying[0]} varies in time" if model.time_varying else "the start is diffuse"
                raise core.bad_value(NAME, "models", f"one in which {got}", "ones in which nothing is")
        if isinstance(models, tuple):
            shapes = {tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(model)) for model in models}
            if len(shapes) != 1:
                got = "of several sizes" if shapes else "none"
                raise core.bad_value(NAME, "models", got, "models whose entries have the same shapes")
            dtype = core.result_dtype(*models)
            models = jax.tree.map(lambda *leaves: jnp.stack([leaf.astype(dtype) for leaf in leaves]), *models)
        elif models.dynamics.ndim != 3:
            raise core.bad_value(NAME, "models", "a single one", "a sequence of models, or one with an axis of them")
        object.__setattr__(self, "models", models)
        size = models.dynamics.shape[0]
        for name, shape in (("initial", (size,)), ("transition", (size, size))):
            object.__setattr__(self, name, _probabilities(name, getattr(self, name), shape, models.dynamics.dtype))

    @property
    def regime_size(self) -> int:
        """K, the number of regimes."""
        return self.initial.shape[-1]

    @property
    def state_size(self) -> int:
        """n, numbers in a state."""
        return self.models.dynamics.shape[-1]

    @property
    def observation_size(self) -> int:
        """m, numbers observed at a time."""
        return self.models.emission.shape[-2]

    def fits(self, steps: int) -> bool:
        """Whether the model spans that many observations: any number."""
        return steps >= 0

    def along(self, regimes: jax.Array) -> LinearGaussian:
        """The `LinearGaussian` of a path of regimes (time,), which varies in time.

        >>> one = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
        >>> SwitchingLinearGaussian([1.0], [[1.0]], [one]).along(jnp.zeros(5, int)).dynamics.shape
        (4, 1, 1)
        """
        moves = ("dynamics", "dynamics_covariance", "dynamics_offset")
        emissions = ("emission", "emission_covariance", "emission_offset")
        first = ("initial_mean", "initial_covariance", "initial_diffuse")
        entries = {name: getattr(self.models, name)[regimes[0]] for name in first}
        entries |= {name: getattr(self.models, name)[regimes[1:]] for name in moves}
        entries |= {name: getattr(self.models, name)[regimes] for name in emissions}
        return LinearGaussian(**entries, time_varying=moves + emissions)

    def sample(self, key: core.Key, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Regimes (steps,), states (steps, n) and observations (steps, m), drawn from the model.

        Raises:
          ValueError: if `steps` is not a number of times.

        >>> one = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
        >>> regimes, states, ys = SwitchingLinearGaussian([1.0], [[1.0]], [one]).sample(jax.random.key(0), 5)
        >>> regimes.shape, states.shape, ys.shape
        ((5,), (5, 1), (5, 1))
        """
        key = core.as_key(key, f"{NAME}.sample")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise core.bad_value(f"{NAME}.sample", "steps", steps, "a number of times, at least 0")
        models, dtype = self.models, self.models.dynamics.dtype
        log_initial, log_transition = core.safe_log(self.initial), core.safe_log(self.transition)
        roots = {
            name: _roots(getattr(models, name))
            for name in ("initial_covariance", "dynamics_covariance", "emission_covariance")
        }

        def step(carry: tuple[jax.Array, jax.Array], time: jax.Array) -> tuple[Any, Any]:
            regime, state = carry
            keys = core.random.split(core.fold(key, time), 3)
            weights = jnp.where(time == 0, log_initial, log_transition[regime])
            regime = core.random.categorical(keys[0], weights, mode="high").astype(jnp.int32)
            noise = core.random.normal(keys[1], state.shape, dtype)
            begun = models.initial_mean[regime] + core.matvec(roots["initial_covariance"][regime], noise)
            moved = core.matvec(models.dynamics[regime], state) + models.dynamics_offset[regime]
            moved = moved + core.matvec(roots["dynamics_covariance"][regime], noise)
            state = jnp.where(time == 0, begun, moved)
            noise = core.random.normal(keys[2], (self.observation_size,), dtype)
            seen = core.matvec(models.emission[regime], state) + models.emission_offset[regime]
            return (regime, state), (regime, state, seen + core.matvec(roots["emission_covariance"][regime], noise))

        start = jnp.int32(0), jnp.zeros((self.state_size,), dtype)
        return scan.scan(step, start, jnp.arange(steps))[1]


def _probabilities(argument: str, value: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    array = core.as_float(value if hasattr(value, "dtype") else np.asarray(value, np.result_type(float)))
    if array.shape != shape:
        raise core.bad_value(
            NAME, argument, f"of shape {array.shape}", f"shape {shape}, as there are {shape[0]} models"
        )
    if not isinstance(array, jax.core.Tracer):
        known = np.asarray(array, np.float64)
        if not ((known >= 0) & np.isfinite(known)).all() or (np.abs(known.sum(-1) - 1) > 1e-5).any():
            expected = "probabilities that sum to 1" + (" in each row" if argument == "transition" else "")
            raise core.bad_value(NAME, argument, np.array2string(known, precision=4).replace("\n", ""), expected)
    return array.astype(dtype)


def _roots(covariances: jax.Array) -> jax.Array:
    """Any roots (K, n, n) of covariances (K, n, n), of any rank, or of variances (K, n)."""
    if covariances.ndim == 2:
        return jax.vmap(jnp.diag)(jnp.sqrt(covariances))
    values, vectors = jnp.linalg.eigh(covariances)
    return vectors * jnp.expand_dims(jnp.sqrt(jnp.maximum(values, 0)), 1)
