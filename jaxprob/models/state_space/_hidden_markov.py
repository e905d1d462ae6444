"""Hidden Markov models: a chain over K states that is not seen, and what each state emits.

    z_0 ~ initial,   z_{t+1} | z_t ~ transition[z_t],   y_t | z_t = k ~ emission[k]

The initial law is that of the state at the first observation. What varies in time is declared, never guessed.
Source: Rabiner (1989), "A tutorial on hidden Markov models and selected applications in speech recognition".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.distributions import Distribution

NAME = "HiddenMarkov"


@core.pytree
class HiddenMarkov:
    """A hidden Markov model of K states.

    Attributes:
      initial: (K,), probabilities of the state at the first observation.
      transition: (K, K), row i the probabilities of the next state after state i; zeros are impossible steps. Where it
        is declared time-varying (time - 1, K, K): entry t leads from time t to t + 1.
      emission: a `Distribution` whose batch_shape leads with K: the rest of it and the event are the shape of one
        observation, and entries of a batch (K, m) are independent, each of which may be missing. Or a function
        `(inputs_t, previous) -> Distribution`, for emissions that are driven by inputs or autoregressive. A function
        with parameters is a `jax.tree_util.Partial(function, parameters)`, called `function(parameters, inputs_t,
        previous)`: its parameters are leaves of the model. Define it once: each new lambda compiles anew.
      inputs: pytree (time, ...) whose entries of a time go to the function, or None.
      history: (lags, *observation), the observations before the first, oldest first, NaN where not known; given, it
        makes the model autoregressive: the function gets the `lags` observations before a time, oldest first. An
        observation is scored only if these are known: what follows a missing one contributes nothing, and nor do the
        first observations if the history is NaN, on which the rest is then conditioned.
      labels: (K,) integers, which of the distributions of `emission` each state has, where states share them; its
        batch_shape then leads with the number of those. By default each state has its own.
      time_varying: ("transition",), or nothing.

    Raises:
      ValueError: if shapes do not fit, or values that are known are no probabilities.
      TypeError: if `emission` is neither a distribution nor a function that returns one.

    >>> from jaxprob.distributions import Normal
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> model.state_size, model.observation_shape
    (2, ())
    """

    initial: Any
    transition: Any
    emission: Any
    inputs: Any = None
    history: Any = None
    labels: Any = None
    time_varying: tuple[str, ...] = core.static(default=())

    def __post_init__(self) -> None:
        declared = (self.time_varying,) if isinstance(self.time_varying, str) else tuple(self.time_varying)
        if declared not in ((), ("transition",)):
            todo = "Emissions vary in time by a function of inputs"
            raise core.bad_value(NAME, "time_varying", declared, "('transition',) or ()", todo)
        object.__setattr__(self, "time_varying", declared)
        initial, transition = _array("initial", self.initial), _array("transition", self.transition)
        dtype = core.result_dtype(initial, transition)
        object.__setattr__(self, "initial", initial.astype(dtype))
        object.__setattr__(self, "transition", transition.astype(dtype))
        if initial.ndim != 1 or not initial.size:
            raise core.bad_value(NAME, "initial", f"of shape {initial.shape}", "shape (K,), K at least 1")
        size = initial.shape[0]
        if transition.ndim != 2 + len(declared) or transition.shape[-2:] != (size, size):
            expected = f"shape ({'time - 1, ' * len(declared)}{size}, {size})"
            todo = "" if declared or transition.ndim != 3 else "Declare time_varying=('transition',) if it varies"
            raise core.bad_value(NAME, "transition", f"of shape {transition.shape}", expected, todo)
        _check_probabilities("initial", self.initial)
        _check_probabilities("transition", self.transition)
        self._check_emission()

    def _check_emission(self) -> None:
        emission = self.emission
        if not isinstance(emission, Distribution):
            if not callable(emission):
                raise core.bad_type(NAME, "emission", emission, "a Distribution, or a function that returns one")
            if not isinstance(emission, jax.tree_util.Partial):
                object.__setattr__(self, "emission", jax.tree_util.Partial(emission))
        elif self.inputs is not None or self.history is not None:
            given = "history" if self.inputs is None else "inputs"
            raise core.bad_value(
                NAME, given, "given", "None beside an emission that is a Distribution, which reads none"
            )
        if self.inputs is not None:
            object.__setattr__(self, "inputs", jax.tree.map(jnp.asarray, self.inputs))
            if len({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.inputs)} - {()}) != 1:
                raise core.bad_value(NAME, "inputs", "of several lengths", "a pytree of arrays (time, ...)")
        count = self.state_size
        if self.labels is not None:
            labels = jnp.asarray(self.labels)
            object.__setattr__(self, "labels", labels)
            if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
                raise core.bad_value(NAME, "labels", labels, f"integers of shape ({count},)")
        if self.history is not None:
            object.__setattr__(self, "history", jnp.asarray(self.history))
        batch, event = self._emission_shapes()
        if not batch or (self.labels is None and batch[0] != count):
            raise core.bad_value(NAME, "emission", f"of batch_shape {batch}", f"a batch_shape that leads with {count}")
        if self.labels is not None and not isinstance(self.labels, jax.core.Tracer):
            values = np.asarray(self.labels)
            if values.min() < 0 or values.max() >= batch[0]:
                got = f"from {values.min()} to {values.max()}"
                raise core.bad_value(NAME, "labels", got, f"0 to {batch[0] - 1}, as emission has {batch[0]}")
        if self.history is not None and (self.history.ndim == 0 or self.history.shape[1:] != batch[1:] + event):
            expected = f"shape (lags, *{batch[1:] + event})"
            raise core.bad_value(NAME, "history", f"of shape {self.history.shape}", expected)

    def _emission_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shapes of the emission; those of a function are found without computing anything."""
        if isinstance(self.emission, Distribution):
            return self.emission.batch_shape, self.emission.event_shape
        shapes: list[Any] = []

        def look(emission: Any, inputs: Any, history: Any) -> None:
            found = emission(inputs, history)
            if not isinstance(found, Distribution):
                raise core.bad_type(
                    NAME, "emission", f"a function that returns {core.describe(found)}", "a Distribution"
                )
            shapes.append((found.batch_shape, found.event_shape))

        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.inputs)
        jax.eval_shape(look, self.emission, one, self.history)
        return shapes[0]

    @property
    def state_size(self) -> int:
        """K, the number of states."""
        return self.initial.shape[-1]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of the observation of one time."""
        batch, event = self._emission_shapes()
        return batch[1:] + event

    @property
    def event_axes(self) -> int:
        """How many of the last axes of an observation are one event, which is seen or missing as a whole."""
        return len(self._emission_shapes()[1])

    def fits(self, steps: int) -> bool:
        """Whether the model spans that many observations; one in which nothing varies spans any number."""
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(self.inputs)}
        moves = {self.transition.shape[0]} if self.time_varying else set()
        return lengths <= {steps} and moves <= {max(steps - 1, 0)}

    def sample(self, key: core.Key, steps: int) -> tuple[jax.Array, jax.Array]:
        """States (steps,) and observations (steps, *observation_shape), drawn from the model.

        An autoregressive model starts from its `history`, which must then be known.

        Raises:
          ValueError: if the model spans another number of steps.

        >>> from jaxprob.distributions import Poisson
        >>> model = HiddenMarkov([1.0, 0.0], [[0.9, 0.1], [0.1, 0.9]], Poisson(jnp.array([1.0, 9.0])))
        >>> states, counts = model.sample(jax.random.key(0), 5)
        >>> states.shape, counts.shape
        ((5,), (5,))
        """
        key = core.as_key(key, "HiddenMarkov.sample")
        if not isinstance(steps, int) or steps < 0 or not self.fits(steps):
            raise core.bad_value("HiddenMarkov.sample", "steps", steps, "the number of times that the model spans")
        log_initial, log_transition = core.safe_log(self.initial), core.safe_log(self.transition)
        labels = jnp.arange(self.state_size) if self.labels is None else self.labels
        transition = None
        if self.time_varying:
            # Nothing leads to the first state, whose row of the table is not read.
            transition = jnp.concatenate(
                [jnp.zeros_like(log_transition, shape=(1, *log_transition.shape[1:])), log_transition]
            )
            transition = transition[:steps]

        def step(carry: Any, xs: Any) -> tuple[Any, Any]:
            state, history = carry
            index, inputs, matrix = xs
            state_key, value_key = core.random.split(core.fold(key, index))
            row = (log_transition if matrix is None else matrix)[state]
            weights = jnp.where(index == 0, log_initial, row)
            state = core.random.categorical(state_key, weights, mode="high").astype(jnp.int32)
            law = self.emission if isinstance(self.emission, Distribution) else self.emission(inputs, history)
            value = law.sample(value_key)[labels[state]]
            if history is not None:
                history = jnp.concatenate([history[1:], jnp.expand_dims(value, 0).astype(history.dtype)])
            return (state, history), (state, value)

        xs = (jnp.arange(steps), self.inputs, transition)
        return scan.scan(step, (jnp.int32(0), self.history), xs)[1]


def _array(argument: str, value: Any) -> jax.Array:
    try:
        return core.as_float(value if hasattr(value, "dtype") else np.asarray(value, np.result_type(float)))
    except (TypeError, ValueError):
        raise core.bad_type(NAME, argument, value, "an array of probabilities") from None


def _check_probabilities(argument: str, array: Any) -> None:
    """Looks at what is known; traced values show in the results instead."""
    if isinstance(array, jax.core.Tracer) or not array.size:
        return
    values = np.asarray(array, np.float64)
    if not ((values >= 0) & np.isfinite(values)).all():
        first = tuple(int(i) for i in np.argwhere(~((values >= 0) & np.isfinite(values)))[0])
        raise core.bad_value(NAME, argument, f"{values[first]:.6g} at {first}", "probabilities")
    totals = values.sum(-1)
    wrong = np.abs(totals - 1) > 1e-5 + 2 * float(jnp.finfo(array.dtype).eps) * values.shape[-1]
    if wrong.any():
        expected = "probabilities that sum to 1" + (" in each row" if argument == "transition" else "")
        raise core.bad_value(
            NAME, argument, f"summing to {totals[wrong].ravel()[0]:.6g}", expected, "Divide by the sum"
        )
