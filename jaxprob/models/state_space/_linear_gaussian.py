"""Linear-Gaussian state-space models: the pytree that every Kalman method takes.

    x_0 ~ N(m, P),   x_{t+1} = F_t x_t + b_t + N(0, Q_t),   y_t = H_t x_t + d_t + N(0, R_t)

The initial law is that of the state at the first observation. Any covariance may be singular, and zero. What varies in
time is declared, never guessed. Models add: the sum of two has the states of both, and the sum of what they emit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag

from jaxprob import core

# The axes of each entry at one time; n states, m observations, d diffuse directions.
AXES = {
    "initial_mean": "n",
    "initial_covariance": "nn",
    "dynamics": "nn",
    "dynamics_covariance": "nn",
    "emission": "mn",
    "emission_covariance": "mm",
    "dynamics_offset": "n",
    "emission_offset": "m",
    "initial_diffuse": "nd",
}
DYNAMICS = ("dynamics", "dynamics_covariance", "dynamics_offset")
EMISSIONS = ("emission", "emission_covariance", "emission_offset")
COVARIANCES = ("initial_covariance", "dynamics_covariance", "emission_covariance")


@core.pytree
class LinearGaussian:
    """A linear-Gaussian state-space model of n states and m observed numbers at a time.

    Attributes:
      initial_mean: (n,), of the state at the first observation.
      initial_covariance: (n, n), symmetric positive semi-definite; zeros where the initial state is known.
      dynamics: F, (n, n). Entry t leads from time t to t + 1.
      dynamics_covariance: Q, (n, n), symmetric positive semi-definite.
      emission: H, (m, n).
      emission_covariance: R, (m, m), symmetric positive semi-definite; or (m,), the variances of independent noise,
        which is cheaper.
      dynamics_offset: b, (n,); zero by default.
      emission_offset: d, (m,); zero by default.
      initial_diffuse: A, (n, d): the initial state is known up to A z, where nothing is known of z (exact diffuse: the
        limit of a variance that grows beyond all numbers). `jnp.eye(n)` where nothing is known at all; by default
        nothing is diffuse.
      time_varying: names of the entries that have a leading axis of time: one for each observation, or one less for
        those of the dynamics.

    Raises:
      ValueError: if shapes do not fit, an unknown name is declared, or a value that is known is not finite, or a
        covariance not symmetric positive semi-definite.

    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1))
    >>> walk.state_size, walk.observation_size, (walk + walk).state_size
    (1, 1, 2)

    Source: Durbin & Koopman (2012), "Time series analysis by state space methods", sections 3.1 and 5.
    """

    initial_mean: Any
    initial_covariance: Any
    dynamics: Any
    dynamics_covariance: Any
    emission: Any
    emission_covariance: Any
    dynamics_offset: Any = None
    emission_offset: Any = None
    initial_diffuse: Any = None
    time_varying: tuple[str, ...] = core.static(default=())

    def __post_init__(self) -> None:
        declared = (self.time_varying,) if isinstance(self.time_varying, str) else tuple(self.time_varying)
        for name in declared:
            if name not in DYNAMICS + EMISSIONS:
                todo = "What is initial does not vary"
                raise core.bad_value("LinearGaussian", "time_varying", repr(name), f"of {DYNAMICS + EMISSIONS}", todo)
        object.__setattr__(self, "time_varying", tuple(name for name in AXES if name in declared))
        arrays = {name: core.as_float(value) for name in AXES if (value := getattr(self, name)) is not None}
        # n and m are read off F and H alone: everything else is held against them.
        sizes = {"n": _size(arrays["dynamics"], -1), "m": _size(arrays["emission"], -2)}
        sizes["d"] = _size(arrays.get("initial_diffuse", np.zeros((1, 0))), -1)
        dtype = core.result_dtype(*arrays.values())
        for name, axes in AXES.items():
            shape = tuple(sizes[axis] for axis in axes)
            if name not in arrays:
                if name in self.time_varying:
                    raise core.bad_value("LinearGaussian", "time_varying", f"{name!r}, which is left out", "given")
                arrays[name] = jnp.zeros(shape, dtype)
            object.__setattr__(self, name, arrays[name].astype(dtype))
            _check_shape(name, arrays[name], shape, name in self.time_varying)
        self._check_length()
        _check_values(self)

    def _check_length(self) -> None:
        lengths = {name: getattr(self, name).shape[0] for name in self.time_varying}
        emissions = {length for name, length in lengths.items() if name in EMISSIONS}
        moves = {length for name, length in lengths.items() if name in DYNAMICS}
        same = len(emissions) <= 1 and len(moves) <= 1
        if not same or (emissions and moves and max(emissions) - max(moves) not in (0, 1)):
            got = ", ".join(f"{length} of {name}" for name, length in lengths.items())
            todo = "Dynamics may have one less than emissions, for the steps between them"
            raise core.bad_value("LinearGaussian", "the time axis", got, "as many times for all", todo)

    @property
    def state_size(self) -> int:
        """n, numbers in a state."""
        return self.dynamics.shape[-1]

    @property
    def observation_size(self) -> int:
        """m, numbers observed at a time."""
        return self.emission.shape[-2]

    @property
    def diffuse_size(self) -> int:
        """d, directions of the initial state of which nothing is known."""
        return self.initial_diffuse.shape[-1]

    def fits(self, steps: int) -> bool:
        """Whether the model spans that many observations; one in which nothing varies spans any number."""
        lengths = {name: getattr(self, name).shape[0] for name in self.time_varying}
        return all(steps - length in ((0, 1) if name in DYNAMICS else (0,)) for name, length in lengths.items())

    def until(self, time: int) -> LinearGaussian:
        """The model of the first `time` observations; itself where nothing varies."""
        cut = {name: getattr(self, name)[:time] for name in self.time_varying}
        return dataclasses.replace(self, **cut)

    def with_inputs(self, inputs: Any, dynamics_input: Any = None, emission_input: Any = None) -> LinearGaussian:
        """The model driven by known inputs u: B u_t is added to the state after time t, and D u_t to what is observed.

        Args:
          inputs: u, (time, k).
          dynamics_input: B, (n, k), or None.
          emission_input: D, (m, k), or None.
        """
        u, changes = core.as_float(inputs), {}
        if u.ndim != 2:
            raise core.bad_value("with_inputs", "inputs", u, "an array (time, input)")
        size = {"dynamics_offset": self.state_size, "emission_offset": self.observation_size}
        for name, matrix in (("dynamics_offset", dynamics_input), ("emission_offset", emission_input)):
            if matrix is not None:
                matrix = core.as_float(matrix)
                if matrix.shape != (size[name], u.shape[1]):
                    argument = name.replace("offset", "input")
                    raise core.bad_value("with_inputs", argument, matrix, f"shape {(size[name], u.shape[1])}")
                offset = getattr(self, name)
                moves = [getattr(self, n).shape[0] for n in self.time_varying if n in DYNAMICS]
                driven = u[: min(moves)] if moves and name in DYNAMICS else u
                if name not in self.time_varying:
                    offset = jnp.expand_dims(offset, 0)
                changes[name] = offset + core.matmul(driven, matrix.T).astype(offset.dtype)
        return dataclasses.replace(self, **changes, time_varying=(*self.time_varying, *changes))

    def __add__(self, other: LinearGaussian) -> LinearGaussian:
        """The model whose observations are the sums of those of two independent ones."""
        if not isinstance(other, LinearGaussian):
            return NotImplemented
        if self.observation_size != other.observation_size:
            got, want = f"{other.observation_size} numbers a time", f"{self.observation_size}, as many as the other"
            raise core.bad_value("LinearGaussian", "what is emitted", got, want)
        dtype = core.result_dtype(*jax.tree.leaves((self, other)))
        self, other = (jax.tree.map(lambda leaf: leaf.astype(dtype), model) for model in (self, other))
        varying = tuple({*self.time_varying, *other.time_varying})

        def both(name: str) -> tuple[jax.Array, jax.Array]:
            one, two = getattr(self, name), getattr(other, name)
            if name not in varying:
                return one, two
            lengths = [getattr(model, name).shape[0] for model in (self, other) if name in model.time_varying]
            length, apart = min(lengths), max(lengths) - min(lengths)
            if apart > (name in DYNAMICS):
                got = f"{lengths[1]} of {name}, and {lengths[0]} of the other"
                raise core.bad_value("LinearGaussian", "the time axis", got, "as many times for both")
            arrays = []
            for model, array in ((self, one), (other, two)):
                spread = jnp.broadcast_to(array, (length, *array.shape)) if name not in model.time_varying else array
                arrays.append(spread[:length])
            return arrays[0], arrays[1]

        def blocks(name: str) -> jax.Array:
            one, two = both(name)
            return jax.vmap(block_diag)(one, two) if name in varying else block_diag(one, two)

        noises = both("emission_covariance")
        if noises[0].ndim != noises[1].ndim:
            full = max(noise.ndim for noise in noises)
            first, second = (noise if noise.ndim == full else _as_matrices(noise) for noise in noises)
            noises = first, second
        return LinearGaussian(
            initial_mean=jnp.concatenate(both("initial_mean")),
            initial_covariance=blocks("initial_covariance"),
            dynamics=blocks("dynamics"),
            dynamics_covariance=blocks("dynamics_covariance"),
            emission=jnp.concatenate(both("emission"), -1),
            emission_covariance=noises[0] + noises[1],
            dynamics_offset=jnp.concatenate(both("dynamics_offset"), -1),
            emission_offset=jnp.add(*both("emission_offset")),
            initial_diffuse=blocks("initial_diffuse"),
            time_varying=varying,
        )


def _as_matrices(variances: jax.Array) -> jax.Array:
    return jax.vmap(_as_matrices)(variances) if variances.ndim > 1 else jnp.diag(variances)


def _size(array: Any, axis: int) -> int:
    return array.shape[axis] if array.ndim >= -axis else 1


def _check_shape(name: str, array: jax.Array, shape: tuple[int, ...], varies: bool) -> None:
    allowed = [shape, shape[:1]] if name == "emission_covariance" else [shape]
    if array.shape[varies:] not in allowed or array.ndim == 0:
        expected = " or ".join(str(("time", *s) if varies else s).replace("'", "") for s in allowed)
        todo = "" if varies or array.shape[1:] not in allowed else f"Declare time_varying=({name!r},) if it varies"
        raise core.bad_value("LinearGaussian", name, f"of shape {array.shape}", f"shape {expected}", todo)


def _check_values(model: LinearGaussian) -> None:
    """Looks at what is known; traced values show in the results instead."""
    for name in AXES:
        array = getattr(model, name)
        if isinstance(array, jax.core.Tracer) or not array.size:
            continue
        values = np.asarray(array, np.float64)
        if not np.isfinite(values).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            todo = "A missing observation is NaN in the data, never in the model"
            raise core.bad_value("LinearGaussian", name, f"{values[first]} at {first}", "finite numbers", todo)
        if name in COVARIANCES:
            is_matrix = values.ndim - (name in model.time_varying) == 2
            _check_covariance(name, values if is_matrix else values[..., None] * np.eye(values.shape[-1]), array.dtype)


def _check_covariance(name: str, values: np.ndarray, dtype: Any) -> None:
    eps = float(jnp.finfo(dtype).eps)
    scale = np.sqrt(np.abs(np.diagonal(values, axis1=-2, axis2=-1)))
    size = scale[..., :, None] * scale[..., None, :]
    if (np.abs(values - np.swapaxes(values, -1, -2)) > 32 * eps * np.maximum(size, np.abs(values))).any():
        raise core.bad_value("LinearGaussian", name, "not symmetric", "a covariance", "Pass (A + A.T) / 2 if it is one")
    # Judged as a correlation, so that the units of the states do not matter.
    correlation = values / np.where(size > 0, size, 1)
    smallest = np.linalg.eigvalsh(correlation).min(initial=0)
    negative = np.diagonal(values, axis1=-2, axis2=-1).min(initial=0) < 0
    if negative or smallest < -64 * eps * values.shape[-1]:
        got = "not positive semi-definite" + ("" if negative else f" (a correlation with eigenvalue {smallest:.2g})")
        raise core.bad_value("LinearGaussian", name, got, "a covariance")
