"""What every network of a denoiser is: a Flax Linen module `(x, t, condition) -> output` for one noised example.

It embeds integers, times and conditions, and checks what it is given; what comes between is the business of each
network. All of them start at an output of zero.

Sources: Vaswani et al. (2017), "Attention is all you need", section 3.5, for the waves of a time; Ho & Salimans (2021),
"Classifier-free diffusion guidance", for the condition that stands for none.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.sequence._layers import Linear

# Waves of a time: pairs of a sine and a cosine, and the fastest of them in radians per unit of time. The slowest makes
# one radian, so that it tells all times apart, and the fastest tells apart those a thousandth from each other.
_WAVES = 64
_FASTEST = 1000.0


class Context(nn.Module):
    """One vector for a time and a condition.

    Attributes:
      width: of the vector.
      classes: number of labels, for conditions that are labels; one more stands for none.
      features: numbers of a condition, for conditions that are vectors.
      factory: public name of the network, for error messages.
    """

    width: int
    classes: int | None
    features: int | None
    factory: str

    @nn.compact
    def __call__(self, t: Any, condition: Any, dtype: Any) -> jax.Array:
        """Maps a time () and a condition to (width,) of a dtype."""
        t = core.as_float(t)
        if t.shape:
            todo = "Use jax.vmap for a batch"
            raise core.bad_value(self.factory, "t", f"of shape {t.shape}", "a scalar, the time of one example", todo)
        sums = core.accumulator_dtype(dtype)
        x = Linear(self.width, name="waves")(waves(t.astype(sums), 1.0, _FASTEST, _WAVES))
        x = Linear(self.width, name="time")(nn.silu(x))
        if self.classes is not None:
            x = x + self._label(condition).astype(sums)
        elif self.features is not None:
            x = x + self._vector(condition, sums)
        elif condition is not None:
            todo = "Give the network classes=, the number of labels, or features=, the length of a vector"
            raise core.bad_value(self.factory, "condition", core.describe(condition), "None", todo)
        return x.astype(dtype)

    def _label(self, condition: Any) -> jax.Array:
        assert self.classes is not None
        table = self.param("labels", nn.initializers.normal(1.0), (self.classes + 1, self.width), jnp.float32)
        label = jnp.asarray(self.classes if condition is None else condition)
        expected = f"an integer label below {self.classes}, or {self.classes} or None for none"
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise core.bad_type(self.factory, "condition", f"of {label.dtype}", expected)
        if label.shape:
            raise core.bad_value(self.factory, "condition", f"of shape {label.shape}", expected)
        return looked_up(table, label)

    def _vector(self, condition: Any, sums: Any) -> jax.Array:
        null = self.param("no_condition", nn.initializers.normal(1.0), (self.width,), jnp.float32).astype(sums)
        linear = Linear(self.width, name="condition")
        if condition is None:
            linear(jnp.zeros((self.features,), sums))  # so that its parameters are made
            return null
        vector = jnp.asarray(condition)
        expected = f"{self.features} floating numbers, all NaN for none, or None"
        if not jnp.issubdtype(vector.dtype, jnp.floating):
            raise core.bad_type(self.factory, "condition", f"of {vector.dtype}", expected)
        if vector.shape != (self.features,):
            raise core.bad_value(self.factory, "condition", f"of shape {vector.shape}", expected)
        none = jnp.all(jnp.isnan(vector))
        return jnp.where(none, null, linear(jnp.where(none, 0, vector.astype(sums))))


class Network(nn.Module):
    """A denoiser's network. Subclasses give `axes` and `run`; functions such as `perceptron` make them.

    `net.init(key, x, t, condition)` makes parameters, `net.apply(params, x, t, condition)` the output for one example.

    Attributes:
      width: numbers of what is computed at a place.
      output: numbers for each number of x, on a last axis of their own; None for one number and no such axis.
      vocabulary: number of tokens, for x of integers.
      classes: number of labels, for conditions that are labels.
      features: numbers of a condition, for conditions that are vectors.
    """

    width: int
    output: int | None = None
    vocabulary: int | None = None
    classes: int | None = None
    features: int | None = None

    # The public name of the factory, for error messages.
    factory = "network"

    @property
    def axes(self) -> int | None:
        """How many axes of x are places; a further one holds channels. None for x of any shape, laid flat."""
        return None

    def run(self, x: jax.Array, context: jax.Array, numbers: int, condition: Any) -> jax.Array:
        """From x (*places, channels), or (channels,) without `axes`, and (width,) to (*places, numbers)."""
        raise NotImplementedError

    def split(self, condition: Any) -> tuple[Any, Any]:
        """What of a condition is for the whole example, and what `run` wants."""
        return condition, None

    @nn.compact
    def __call__(self, x: Any, t: Any, condition: Any = None) -> jax.Array:
        """One example.

        Args:
          x: the example; floating, or integers with a vocabulary, for which the number after the last token is one
            more token, that of what is masked. Other integers give NaN.
          t: (), the time, from 0 (data) to 1 (noise).
          condition: None, a label (), of which the one after the last stands for none, or a vector, for which one of
            NaN stands for none; as the network was made for.

        Returns:
          of the shape of x; or that with a last axis of `output` numbers, or of `vocabulary` logits.

        Raises:
          TypeError: if x or a condition is of another dtype than the network was made for.
          ValueError: if a shape is.
        """
        x = jnp.asarray(x)
        self._check(x)
        own, rest = self.split(condition)
        shape, numbers = x.shape, self.output or self.vocabulary or 1
        x = x if self.vocabulary is None else self.embedded(x)
        context = Context(self.context_width, self.classes, self.features, self.name_of, name="context")(
            t, own, x.dtype
        )
        places = shape[: self.axes or 0]
        y = self.run(x.reshape(*places, -1), context, numbers * math.prod(shape[len(places) :]), rest)
        return y.reshape(shape if self.output is None and self.vocabulary is None else (*shape, numbers))

    @property
    def context_width(self) -> int:
        """Numbers of the vector of a time and a condition."""
        return self.width

    @property
    def name_of(self) -> str:
        """The public name of what made it, for error messages."""
        return f"networks.{self.factory}"

    def embedded(self, x: jax.Array) -> jax.Array:
        """Integers as vectors, on a last axis."""
        assert self.vocabulary is not None
        table = self.param("tokens", nn.initializers.normal(1.0), (self.vocabulary + 1, self.width), jnp.float32)
        return looked_up(table, x)

    def first_kernel(self) -> jax.Array | None:
        """The kernel of the first layer, "encoder", where there are parameters."""
        return self.variables.get("params", {}).get("encoder", {}).get("kernel")

    def check_inputs(self, x: jax.Array) -> None:
        """Checks what enters the first layer, (..., inputs), against its parameters."""
        kernel = self.first_kernel()
        if kernel is not None and kernel.shape[-2] != x.shape[-1]:
            got, expected = f"of {x.shape[-1]} numbers at a place", f"{kernel.shape[-2]}, as for init"
            raise core.bad_value(self.name_of, "x", got, expected, "Make parameters for this shape with init")

    def _check(self, x: jax.Array) -> None:
        wanted: Any
        if self.vocabulary is None:
            wanted, expected, todo = jnp.floating, "floating numbers", "vocabulary=K embeds K tokens"
        else:
            wanted, expected, todo = jnp.integer, "integers, the tokens", ""
        if not jnp.issubdtype(x.dtype, wanted):
            raise core.bad_type(self.name_of, "x", f"of {x.dtype}", expected, todo)
        if self.axes is not None and x.ndim not in (self.axes, self.axes + 1):
            names = ("site", "height, width")[self.axes - 1]
            todo = "Use jax.vmap for a batch" if x.ndim > self.axes + 1 else ""
            one = f"({names},)" if self.axes == 1 else f"({names})"
            raise core.bad_value(self.name_of, "x", f"of shape {x.shape}", f"{one} or ({names}, channel)", todo)
        if 0 in x.shape:
            raise core.bad_value(self.name_of, "x", f"of shape {x.shape}", "at least one number")


def waves(x: jax.Array, slowest: float, fastest: float, number: int) -> jax.Array:
    """Sines and cosines of x times evenly spaced logarithms of frequencies: (..., 2 number) from (...)."""
    frequencies = np.geomspace(slowest, fastest, number)
    angles = jnp.expand_dims(x, -1) * jnp.asarray(frequencies.reshape((1,) * x.ndim + (-1,)), x.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def looked_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a table; NaN where there is none, so that an integer that does not exist is not silently another."""
    known = (index >= 0) & (index < table.shape[0])
    return jnp.where(jnp.expand_dims(known, -1), table[jnp.where(known, index, 0)], jnp.nan)


def check_options(
    function: str,
    width: Any,
    output: Any = None,
    vocabulary: Any = None,
    classes: Any = None,
    features: Any = None,
) -> None:
    """Checks what all networks have in common."""
    core.check_whole(function, width=width)
    optional = {"output": output, "vocabulary": vocabulary, "classes": classes, "features": features}
    core.check_whole(function, **{name: value for name, value in optional.items() if value is not None})
    for one, other in (("output", "vocabulary"), ("classes", "features")):
        if optional[one] is not None and optional[other] is not None:
            raise core.bad_value(function, one, optional[one], f"None beside {other}={optional[other]}", "Give one")
