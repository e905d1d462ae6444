r"""Autoregressive density models: a sequence network gives the law of each element from those before it.

$$\log p(x_{1:T}) = \sum_t \log p(x_t \mid x_{<t})$$ All terms at once from the sequence moved by one; draws one by one.
Source: Bengio, Ducharme, Vincent and Jauvin (2003), "A neural probabilistic language model"; Graves (2013), "Generating
sequences with recurrent neural networks", for mixtures as outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.distributions import Distribution
from jaxprob.models.sequence._bidirectional import _Bidirectional
from jaxprob.models.sequence._core import Core, check_reset, check_state

_NAME = "sequence.autoregressive"


class AutoregressiveState(NamedTuple):
    """What a sequence left behind.

    Attributes:
      net: the state of the network, which has seen all elements but the last.
      last: the last element (*element), the next input.
    """

    net: Any
    last: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class AutoregressiveModel:
    """What `autoregressive` returns: pure functions of the parameters.

    Attributes:
      net: the network.
      distribution: `outputs (features,) -> Distribution` of one element.
      start: what stands for the element before the first.
    """

    net: Any
    distribution: Callable[[jax.Array], Distribution]
    start: Any

    # The public name, for error messages about states and resets.
    factory = "autoregressive"

    def init(self, key: core.Key, xs: jax.Array) -> Any:
        """Parameters of the network, for elements such as `xs` (time, *element)."""
        return self.net.init(key, self._inputs(self._checked(xs)))

    def initial_state(self) -> AutoregressiveState:
        """The state before the first element."""
        return AutoregressiveState(self.net.initial_state(), jnp.asarray(self.start))

    def log_prob(
        self, params: Any, xs: jax.Array, state: Any = None, reset: Any = None, *, key: core.Key | None = None
    ) -> jax.Array:
        """log p(x_t | x_1 ... x_{t-1}) of each element; their sum is the log density of the sequence.

        Args:
          params: of `init`.
          xs: (time, *element): integers (time,) for a network with a vocabulary; reals or counts (time,) or
            (time, size).
          state: what `observe` returned, to go on after it; the initial state by default.
          reset: booleans (time,): where true a new sequence begins.
          key: for dropout; None for none.

        Returns:
          (time,), in float32 at least.
        """
        return self.observe(params, xs, state, reset, key=key)[0]

    def observe(
        self, params: Any, xs: jax.Array, state: Any = None, reset: Any = None, *, key: core.Key | None = None
    ) -> tuple[jax.Array, AutoregressiveState]:
        """As `log_prob`, and the state after the last element, from which `step`, `sample` and `log_prob` go on."""
        xs, state = self._checked(xs), check_state(self, state)
        reset = check_reset(self, reset, xs.shape[0])
        before = jnp.concatenate([state.last.astype(xs.dtype)[None], xs[:-1]])
        if reset is not None:
            begins = reset.reshape(-1, *[1] * (xs.ndim - 1))
            before = jnp.where(begins, jnp.broadcast_to(jnp.asarray(self.start, xs.dtype), xs.shape), before)
        rngs = None if key is None else {"dropout": core.as_key(key, _NAME)}
        outputs, after = self.net.apply(
            params, self._inputs(before), state.net, reset, deterministic=key is None, rngs=rngs
        )
        return jax.vmap(self._term)(outputs, xs), AutoregressiveState(after, xs[-1])

    def step(
        self, params: Any, key: core.Key, x: jax.Array | None = None, state: Any = None
    ) -> tuple[jax.Array, AutoregressiveState]:
        """Draws the next element.

        Args:
          params: of `init`.
          key: used once.
          x: the element before it (*element); by default that with which `state` ends.
          state: what `observe` or an earlier step returned; the initial state by default.

        Returns:
          the element (*element) and the state after it.
        """
        state = check_state(self, state)
        if x is not None and jnp.shape(x) != jnp.shape(state.last):
            raise core.bad_value(_NAME, "x", f"of shape {jnp.shape(x)}", f"one element, {jnp.shape(state.last)}")
        x = state.last if x is None else jnp.asarray(x)
        outputs, after = self.net.apply(params, self._inputs(x[None])[0], state.net, method="step")
        drawn = self.distribution(_wide(outputs)).sample(key).astype(state.last.dtype)
        return drawn, AutoregressiveState(after, drawn)

    def sample(
        self, params: Any, key: core.Key, length: int, prefix: jax.Array | None = None, state: Any = None
    ) -> jax.Array:
        """Draws a sequence, one element after another.

        Args:
          params: of `init`.
          key: used once. The first elements do not depend on how many are drawn.
          length: how many elements are drawn.
          prefix: (time, *element), elements that come before them and are not part of the result.
          state: what `observe` returned, to go on after it (and then after the prefix); the initial state by default.

        Returns:
          (length, *element).
        """
        core.check_whole("sequence.autoregressive", length=length)
        state = check_state(self, state) if prefix is None else self.observe(params, prefix, state)[1]

        key = core.as_key(key, _NAME)

        def one(state: Any, time: jax.Array) -> tuple[Any, jax.Array]:
            x, state = self.step(params, core.fold(key, time), None, state)
            return state, x

        return scan.scan(one, state, jnp.arange(length))[1]

    def _checked(self, xs: Any) -> jax.Array:
        """A sequence of elements, as an array."""
        shape, element = jnp.shape(xs), np.shape(self.start)
        if shape[1:] != element or len(shape) == 0 or shape[0] == 0:
            wanted = f"(time{''.join(f', {n}' for n in element)}{'' if element else ','}), at least one time"
            todo = "Use jax.vmap for a batch" if len(shape) > 1 + len(element) else ""
            raise core.bad_value(_NAME, "xs", f"of shape {shape}", wanted, todo)
        if self._has_tokens and not jnp.issubdtype(jnp.result_type(xs), jnp.integer):
            raise core.bad_value(_NAME, "xs", f"of {jnp.result_type(xs)}", "integers, for a network with a vocabulary")
        return jnp.asarray(xs)

    @property
    def _has_tokens(self) -> bool:
        return getattr(self.net, "vocabulary", None) is not None

    def _inputs(self, xs: jax.Array) -> jax.Array:
        """Elements as inputs of the network."""
        return xs if self._has_tokens else core.as_float(xs).reshape(xs.shape[0], -1)

    def _term(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        outputs = _wide(outputs)
        x = x.astype(outputs.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        # A batch of distributions is that of the independent parts of one element.
        return jnp.sum(self.distribution(outputs).log_prob(x))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(core.accumulator_dtype(x.dtype))


def autoregressive(
    net: Core, distribution: Callable[[jax.Array], Distribution], start: Any = None
) -> AutoregressiveModel:
    """A density model of sequences: `net` reads the elements so far, `distribution` makes a law of its outputs.

    Args:
      net: a stack or core that reads forwards: with a `vocabulary` for integers that are embedded; else elements are
        its inputs, one feature for each number.
      distribution: `outputs (features,) -> Distribution` of one element: its draws have the shape of an element, and
        what is a batch of it are independent parts of one.
      start: the element that stands before the first; zeros by default. A vocabulary with one token more than there are
        has one for it.

    Returns:
      a model with `init`, `log_prob`, `observe`, `step` and `sample`.

    Raises:
      TypeError: if `net` is no core, or `distribution` returns no distribution.
      ValueError: if `net` reads backwards too or pools time, or `start` is no element.

    >>> from jaxprob.distributions import Categorical
    >>> from jaxprob.models import sequence
    >>> net = sequence.stack(sequence.gru(8), depth=1, output=3, vocabulary=3)
    >>> model = sequence.autoregressive(net, lambda outputs: Categorical(logits=outputs))
    >>> params = model.init(jax.random.key(0), jnp.array([0, 2, 1]))
    >>> model.log_prob(params, jnp.array([0, 2, 1])).shape
    (3,)
    >>> model.sample(params, jax.random.key(1), 5, prefix=jnp.array([0, 2])).shape
    (5,)
    """
    if not isinstance(net, Core):
        raise core.bad_type(_NAME, "net", net, "a sequence network", "For example sequence.stack(...)")
    if _reads_ahead(net):
        raise core.bad_value(_NAME, "net", "bidirectional", "a network whose outputs depend on earlier inputs only")
    if getattr(net, "pool", None) is not None:
        raise core.bad_value(_NAME, "net", "one that pools time", "a network with an output at each time")
    features = getattr(net, "output", None) or net.width
    element = jax.eval_shape(
        lambda outputs: _element(distribution, outputs), jax.ShapeDtypeStruct((features,), jnp.float32)
    )
    has_tokens = getattr(net, "vocabulary", None) is not None
    dtype = element.dtype if has_tokens or jnp.issubdtype(element.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    begin = np.zeros(element.shape, dtype) if start is None else np.asarray(start)
    if begin.shape != element.shape or (has_tokens and not np.issubdtype(begin.dtype, np.integer)):
        wanted = f"one element: {'an integer' if has_tokens else 'numbers'} of shape {element.shape}"
        raise core.bad_value(_NAME, "start", f"{begin.dtype} of shape {begin.shape}", wanted)
    if has_tokens and not 0 <= begin < net.vocabulary:
        raise core.bad_value(_NAME, "start", start, f"a token of the vocabulary, from 0 to {net.vocabulary - 1}")
    return AutoregressiveModel(net, distribution, begin.astype(dtype))


def _element(distribution: Callable[[jax.Array], Distribution], outputs: jax.Array) -> jax.Array:
    """One draw, for its shape."""
    made = distribution(outputs)
    if not isinstance(made, Distribution):
        raise core.bad_type(_NAME, "distribution(outputs)", made, "a Distribution of jaxprob.distributions")
    return made.sample(jax.random.key(0))


def _reads_ahead(part: Any) -> bool:
    """Whether there is a bidirectional core in it."""
    if isinstance(part, _Bidirectional):
        return True
    if isinstance(part, (tuple, list)):
        return any(_reads_ahead(one) for one in part)
    if not isinstance(part, nn.Module):
        return False
    names = [field.name for field in dataclasses.fields(part) if field.name not in ("parent", "name")]
    return any(_reads_ahead(getattr(part, name)) for name in names)
