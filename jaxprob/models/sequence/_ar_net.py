"""AR-Net: an autoregression of a large order as a linear layer, with a penalty that finds the lags which matter.

Least squares costs the square of the order for each time, a step of gradient descent the order; the penalty makes it
unnecessary to know the order. Source: Triebe, Laptev and Rajagopal (2019), "AR-Net: a simple auto-regressive neural
network for time-series".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.models.sequence._core import Core, check_inputs, check_state, recurrent_states

# A weight below it counts as zero: the root in the penalty has an infinite slope there.
_SMALL = 1e-4


class _ARNet(Core):
    """y_t = b + sum_i A_i x_{t+1-i}."""

    order: int = 1

    factory = "ar_net"

    def setup(self) -> None:
        bound = (self.order * self.width) ** -0.5  # that of a linear layer in PyTorch, with which it was published

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return core.random.uniform(key, shape, jnp.float32, -bound, bound)

        self.coefficients = self.param("coefficients", uniform, (self.order, self.width, self.width))
        self.bias = self.param("bias", lambda key: jnp.zeros(self.width))

    def initial_state(self) -> jax.Array:
        """The inputs before the first, (order - 1, width), the latest last."""
        return jnp.zeros((self.order - 1, self.width))

    def run(
        self, xs: jax.Array, state: jax.Array, reset: jax.Array | None, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """A convolution; with resets one time after the other."""
        if reset is not None:
            return recurrent_states(self._cell(), state, xs, self.initial_state(), reset)
        inputs = jnp.concatenate([state, xs.astype(state.dtype)])
        lags, bias = self._lags(state.dtype)
        # (place in the window, output, input) becomes (place in the window, input, output).
        kernel = jnp.swapaxes(lags, 1, 2)
        ys = lax.conv_general_dilated(
            jnp.expand_dims(inputs, 0),
            kernel,
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=lax.Precision.HIGHEST,
        )
        return (ys[0] + jnp.expand_dims(bias, 0)).astype(xs.dtype), inputs[xs.shape[0] :]

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """One input (width,): the mean of the next one."""
        check_inputs(self, x, 1)
        state, y = self._cell()(check_state(self, state), x)
        return y, state

    def _lags(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """The coefficients, the latest lag last as in the state, and the bias."""
        return jnp.flip(self.coefficients, 0).astype(dtype), self.bias.astype(dtype)

    def _cell(self) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        def cell(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            lags, bias = self._lags(state.dtype)
            inputs = jnp.concatenate([state, jnp.expand_dims(x.astype(state.dtype), 0)])
            y = jnp.einsum("koi,ki->o", lags, inputs, precision=lax.Precision.HIGHEST) + bias
            return inputs[1:], y.astype(x.dtype)

        return cell


def ar_net(width: int, *, order: int) -> Core:
    """A linear autoregression as a core: its output is the mean of the next input.

        y_t = b + sum_i A_i x_{t+1-i}

    Train it with `ar_net_loss`. Its parameters "coefficients" A (order, width, width), for a series of one number
    `[:, 0, 0]`, are those of `state_space.vector_autoregression` and `state_space.autoregressive`, for forecasts with
    their uncertainty and for series with gaps.

    Args:
      width: numbers at one time; 1 for one series.
      order: how many of the last inputs are seen.

    Returns:
      a core whose state is the last order - 1 inputs.

    Raises:
      ValueError: if a size is not 1 or more.

    >>> net = ar_net(1, order=3)
    >>> params = {"params": {"coefficients": jnp.array([0.5, 0.0, 0.25]).reshape(3, 1, 1), "bias": jnp.zeros(1)}}
    >>> net.apply(params, jnp.array([[1.0], [0.0], [0.0]]))[0].ravel().tolist()
    [0.5, 0.0, 0.25]

    Source: Triebe, Laptev and Rajagopal (2019), equation 2.
    """
    core.check_whole("sequence.ar_net", width=width)
    core.check_whole("sequence.ar_net", order=order)
    return _ARNet(width, order)


def ar_net_loss(
    net: Core, *, sparsity: float | None = None, strength: float = 0.01, c1: float = 3.0, c2: float = 3.0
) -> Callable[[Any, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of AR-Net: the mean squared error of one step ahead, and a penalty for weights that are not zero.

        mean (x_{t+1} - y_t)^2 + strength (1 / sparsity - 1) mean_i r(|w_i|),   r(u) = 2 / (1 + exp(-c1 u^(1/c2))) - 1

    r is near zero or one, so that it counts weights and hardly shrinks those that it keeps. Weights below 1e-4 are
    taken for zero, where the slope of r is infinite. Without a penalty its minimum is that of least squares.

    Args:
      net: an `ar_net`.
      sparsity: fraction of the weights that are expected not to be zero, above 0 and at most 1; None for no penalty.
      strength: the paper advises the standard deviation of the noise over 100.
      c1, c2: shape of the penalty.

    Returns:
      `loss(params, batch, key) -> (scalar, metrics)` for `learning.Task`. The batch is (batch, time, width), windows of
      a series that are longer than the order: the first `order` values of each are seen and not predicted. Metrics:
      "squared_error" and "penalty".

    Raises:
      TypeError: if `net` is another core.
      ValueError: if a number is out of its range; by the loss, if windows are too short.

    >>> net = ar_net(1, order=1)
    >>> params = {"params": {"coefficients": jnp.full((1, 1, 1), 0.5), "bias": jnp.zeros(1)}}
    >>> value, metrics = ar_net_loss(net)(params, jnp.array([[[1.0], [1.0], [0.0]]]), None)
    >>> f"{value:.3f}"
    '0.250'

    Source: Triebe, Laptev and Rajagopal (2019), equations 4 to 6.
    """
    name = "sequence.ar_net_loss"
    if not isinstance(net, _ARNet):
        raise core.bad_type(name, "net", net, "what sequence.ar_net returned")
    if sparsity is not None and not 0 < sparsity <= 1:
        raise core.bad_value(name, "sparsity", sparsity, "a fraction above 0 and at most 1, or None for no penalty")
    for argument, number in (("strength", strength), ("c1", c1), ("c2", c2)):
        core.check_positive(name, **{argument: number})
    scale = 0.0 if sparsity is None else strength * (1 / sparsity - 1)
    order = net.order

    def loss(params: Any, batch: jax.Array, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        shape = jnp.shape(batch)
        if len(shape) != 3 or shape[1] <= order or shape[2] != net.width:
            expected = f"(batch, time, {net.width}) with more than {order} times, the order"
            raise core.bad_value(name, "batch", f"of shape {shape}", expected)

        def errors(window: jax.Array) -> jax.Array:
            ys, _ = net.apply(params, window[order - 1 : -1], window[: order - 1].astype(jnp.float32))
            return ys - window[order:]

        error = jnp.mean(jnp.square(jax.vmap(errors)(batch)))
        penalty = scale * _counted(params["params"]["coefficients"], c1, c2)
        return error + penalty.astype(error.dtype), {"squared_error": error, "penalty": penalty}

    return loss


def _counted(weights: jax.Array, c1: float, c2: float) -> jax.Array:
    """The mean of r(|w|): about the fraction of weights that are not zero."""
    root = jnp.maximum(jnp.abs(weights), _SMALL) ** (1 / c2)
    return jnp.mean(jnp.tanh(0.5 * c1 * root))  # 2 / (1 + exp(-z)) - 1 = tanh(z / 2)


def yule_walker(series: Any, order: int) -> tuple[jax.Array, jax.Array]:
    """An autoregression from autocovariances, by the recursion of Levinson and Durbin: order^2 operations.

    The fastest way to a linear autoregression, and always to a stationary one; biased for short series.

    Args:
      series: (time,), of one number at each time, longer than the order. Its mean is taken off.
      order: number of coefficients.

    Returns:
      coefficients (order,) of the last values, the latest first, and the variance of what is new at each time.

    Raises:
      ValueError: if the series is none or is not longer than the order.

    >>> coefficients, variance = yule_walker(jnp.array([1.0, -1.0, 1.0, -1.0]), 1)
    >>> f"{coefficients[0]:.3f} {variance:.4f}"
    '-0.750 0.4375'

    Source: Durbin (1960), "The fitting of time-series models", section 6; Levinson (1947).
    """
    name = "sequence.yule_walker"
    core.check_whole(name, order=order)
    series = core.as_float(series)
    if series.ndim != 1 or series.shape[0] <= order:
        expected = f"one number at each of more than {order} times, the order"
        raise core.bad_value(name, "series", f"of shape {series.shape}", expected)
    wide = series.astype(core.accumulator_dtype(series.dtype))
    wide = wide - jnp.mean(wide)
    length = wide.shape[0]
    shifted = jnp.correlate(jnp.pad(wide, (0, order)), wide, "valid", precision=lax.Precision.HIGHEST)
    covariances = shifted / length  # of lags 0 to order

    def longer(state: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[Any, None]:
        found, variance = state
        place = jnp.arange(order)
        # Coefficients of lags 1 to index in reverse order, and zero behind them.
        turned = jnp.where(place < index, jnp.roll(jnp.flip(found), index), 0)
        known = jnp.where(place < index, covariances[1:], 0)
        rest = covariances[index + 1] - core.dot(turned, known)
        partial = jnp.where(variance > 0, rest / jnp.where(variance > 0, variance, 1), 0)
        found = found - partial * turned
        return (jnp.where(place == index, partial, found), variance * (1 - partial**2)), None

    start = jnp.zeros(order, wide.dtype), covariances[0]
    (found, variance), _ = scan.scan(longer, start, jnp.arange(order))
    return found.astype(series.dtype), variance.astype(series.dtype)
