"""State-space models made of distributions: any law of the first state, of each next one, and of what is observed.

    x_0 ~ initial,   x_{t+1} | x_t ~ transition(x_t, t),   y_t | x_t ~ observation(x_t, t)

Gaussian filters and smoothers read the means and variances of these laws, particle methods their draws and densities.
Source: Durbin & Koopman (2012), "Time series analysis by state space methods", section 9.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions import Distribution

NAME = "StateSpaceModel"


@core.pytree
class StateSpaceModel:
    """A state-space model of a state with real entries.

    Attributes:
      initial: a `Distribution`, the law of the state at the first observation. Batch axes are entries that are
        independent: `Normal(jnp.zeros(2), 1.0)` is the law of a state of two numbers.
      transition: a function `(state, t) -> Distribution` of the next state, from time t to t + 1.
      observation: a function `(state, t) -> Distribution` of what is observed at time t. Batch axes are entries that
        are independent given the state, each of which may be missing; an event is there or missing as a whole, but for
        a multivariate normal one.
      inputs: pytree (time, ...) whose entries of a time go to both functions, `(state, t, inputs_t)`; or None.

    A function with parameters is a `jax.tree_util.Partial(function, parameters)`, called `function(parameters, state,
    t)`: its parameters are leaves of the model. Define functions once: each new lambda compiles anew.

    Raises:
      TypeError: if `initial` is no distribution, or the others are no functions that return one.
      ValueError: if the next state has another shape than the first, or inputs are of several lengths.

    >>> from jaxprob.distributions import Normal, Poisson
    >>> model = StateSpaceModel(
    ...     initial=Normal(jnp.zeros(2), 1.0),
    ...     transition=lambda x, t: Normal(jnp.sin(x), 0.1),
    ...     observation=lambda x, t: Poisson(jnp.exp(x[0])),
    ... )
    >>> model.state_shape, model.observation_shape
    ((2,), ())
    """

    initial: Any
    transition: Any
    observation: Any
    inputs: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.initial, Distribution):
            raise core.bad_type(NAME, "initial", self.initial, "a Distribution")
        for name in ("transition", "observation"):
            function = getattr(self, name)
            if not callable(function):
                raise core.bad_type(NAME, name, function, "a function that returns a Distribution")
            if not isinstance(function, jax.tree_util.Partial):
                object.__setattr__(self, name, jax.tree_util.Partial(function))
        if self.inputs is not None:
            object.__setattr__(self, "inputs", jax.tree.map(jnp.asarray, self.inputs))
            if len({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.inputs)} - {()}) != 1:
                raise core.bad_value(NAME, "inputs", "of several lengths", "a pytree of arrays (time, ...)")
        moved = self._shapes("transition")
        if sum(moved, ()) != self.state_shape:
            got = f"a function that returns a law of shape {sum(moved, ())}"
            raise core.bad_value(NAME, "transition", got, f"shape {self.state_shape}, that of initial")
        # Kept, since finding them again traces the function; a model made by a transformation finds them when asked.
        object.__setattr__(self, "_found", self._shapes("observation"))

    def _shapes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shapes of what a function returns, found without computing anything."""
        shapes: list[Any] = []

        def look(function: Callable[..., Any], state: Any, time: Any, inputs: Any) -> None:
            found = self._call(function, state, time, inputs)
            if not isinstance(found, Distribution):
                got = f"a function that returns {core.describe(found)}"
                raise core.bad_type(NAME, name, got, "a function that returns a Distribution")
            shapes.append((found.batch_shape, found.event_shape))

        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.inputs)
        state = jax.eval_shape(lambda law: law.sample(jax.random.key(0)), self.initial)
        jax.eval_shape(look, getattr(self, name), state, jax.ShapeDtypeStruct((), jnp.int32), one)
        return shapes[0]

    def _observation_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        found = getattr(self, "_found", None)
        return self._shapes("observation") if found is None else found

    @staticmethod
    def _call(function: Callable[..., Any], state: Any, time: Any, inputs: Any) -> Any:
        return function(state, time) if inputs is None else function(state, time, inputs)

    def next_state(self, state: jax.Array, time: Any) -> Distribution:
        """The law of the state after that of a time: `transition`, with the inputs of the time."""
        return self._call(self.transition, state, time, jax.tree.map(lambda leaf: leaf[time], self.inputs))

    def observed(self, state: jax.Array, time: Any) -> Distribution:
        """The law of what is observed at a time: `observation`, with the inputs of the time."""
        return self._call(self.observation, state, time, jax.tree.map(lambda leaf: leaf[time], self.inputs))

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of the state of one time."""
        return self.initial.shape

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of the observation of one time."""
        return sum(self._observation_shapes(), ())

    @property
    def event_axes(self) -> int:
        """How many of the last axes of an observation are one event."""
        return len(self._observation_shapes()[1])

    def fits(self, steps: int) -> bool:
        """Whether the model spans that many observations; one without inputs spans any number."""
        return {leaf.shape[0] for leaf in jax.tree.leaves(self.inputs)} <= {steps}

    def until(self, time: int) -> StateSpaceModel:
        """The model of the first `time` observations; itself without inputs."""
        return dataclasses.replace(self, inputs=jax.tree.map(lambda leaf: leaf[:time], self.inputs))

    def sample(self, key: core.Key, steps: int) -> tuple[jax.Array, jax.Array]:
        """States (steps, *state_shape) and observations (steps, *observation_shape), drawn from the model.

        Raises:
          ValueError: if the model spans another number of steps.

        >>> from jaxprob.distributions import Normal
        >>> walk = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 0.5))
        >>> states, ys = walk.sample(jax.random.key(0), 5)
        >>> states.shape, ys.shape
        ((5,), (5,))
        """
        key = core.as_key(key, f"{NAME}.sample")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or not self.fits(steps):
            raise core.bad_value(f"{NAME}.sample", "steps", steps, "the number of times that the model spans")
        first_key, key = core.random.split(key)

        def step(state: jax.Array, time: jax.Array) -> tuple[jax.Array, Any]:
            state_key, value_key = core.random.split(core.fold(key, time))
            after = self.next_state(state, time).sample(state_key).astype(state.dtype)
            return after, (state, self.observed(state, time).sample(value_key))

        return scan.scan(step, self.initial.sample(first_key), jnp.arange(steps))[1]
