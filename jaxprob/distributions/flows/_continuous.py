"""Continuous flows: data is where noise is carried by an ordinary differential equation.

Sources: Chen, Rubanova, Bettencourt and Duvenaud (2018), "Neural ordinary differential equations", theorem 1;
Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud (2019), "FFJORD", for the estimate of the divergence; the solver is
diffrax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, floating
from jaxprob.distributions.flows._affine import RealVectorBijector
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._networks import Perceptron, with_context
from jaxprob.distributions.flows._ordered_layers import check_layers, vector_size


@core.pytree
class Velocity:
    """A velocity field made of a network of the place, the time and the context.

    Args:
      network: `(n + 1 + context_width,) -> (n,)`; bounded activations keep solutions from running away.
    """

    network: Callable[[jax.Array], jax.Array]

    def __call__(self, t: jax.Array, x: jax.Array, context: Any) -> jax.Array:
        """dx/dt at time t and place x (n,)."""
        return self.network(with_context(jnp.concatenate([x, t.reshape(1).astype(x.dtype)]), context))


@core.pytree
class Continuous(RealVectorBijector):
    """The place at time 1 of what is at u at time 0 and moves with dx/dt = velocity(t, x, context).

    The log-determinant is the divergence of the velocity, integrated along the path: exact, by n products with the
    Jacobian at each evaluation, or, with `probes` above 0, the mean of e^T J e over that many vectors e of random
    signs (Hutchinson). These are drawn once from `seed`, the same at every time and for every point, so that the
    log-determinant is a smooth function, and `inverse_and_log_det` minus that of `forward_and_log_det`; it is an
    unbiased estimate over seeds. A model that is trained on one set of probes learns to please it: in a loss, put new
    ones in with `dataclasses.replace(bijector, noise=jax.random.rademacher(key, (probes, n), float))`.

    Each point has steps of its own, by Tsitouras' method of order 5. Where the solver fails (more than `max_steps`
    steps, or numbers that are not finite) the result and the log-determinant are NaN. Gradients are those of the steps
    that were taken, by diffrax's default adjoint, which has reverse mode only.

    Args:
      velocity: callable pytree `(t, x (n,), context) -> (n,)`, Lipschitz in x; the context is None where there is none.
      context: (context_width,), once it is given.
      noise: (probes, n), instead of what `seed` gives.
      context_width: numbers of the context.
      tolerance: of the solver, relative and absolute: of the largest number of a point.
      probes: number of random vectors; 0 for the exact divergence.
      seed: of those vectors.
      max_steps: of the solver, for each point.

    Raises:
      ImportError: without diffrax (the `flows` extra).
    """

    velocity: Callable[[jax.Array, jax.Array, Any], jax.Array]
    context: Any = None
    noise: Any = None
    context_width: int = core.static(default=0)
    tolerance: float = core.static(default=1e-5)
    probes: int = core.static(default=0)
    seed: int = core.static(default=0)
    max_steps: int = core.static(default=4096)

    def __post_init__(self) -> None:
        _diffrax()

    @property
    def context_size(self) -> int:
        return self.context_width if self.context is None else 0

    def given(self, context: Any) -> Continuous:
        fixed = (self.context_width, self.tolerance, self.probes, self.seed, self.max_steps)
        return Continuous(self.velocity, context, self.noise, *fixed)

    def forward(self, u: Any) -> jax.Array:
        return self._moved(u, 0.0, 1.0, with_log_det=False)[0]

    def inverse(self, x: Any) -> jax.Array:
        return self._moved(x, 1.0, 0.0, with_log_det=False)[0]

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return self._moved(u, 0.0, 1.0)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return self._moved(x, 1.0, 0.0)

    def _divergence(self, t: jax.Array, x: jax.Array, arguments: Any) -> tuple[jax.Array, jax.Array]:
        """The velocity at a point, and its divergence."""
        velocity, context, probes = arguments
        dx, push = jax.linearize(lambda x: velocity(t, x, context), x)
        pushed = jax.vmap(push)(probes)
        # With the rows of the identity as probes, the trace itself.
        return dx, jnp.sum(probes * pushed) / (1 if self._is_exact else probes.shape[0])

    @property
    def _is_exact(self) -> bool:
        return self.probes == 0 and self.noise is None

    def _probes(self, size: int, dtype: Any) -> jax.Array:
        if self.noise is not None:
            return self.noise.astype(dtype)
        if self._is_exact:
            return jnp.eye(size, dtype=dtype)
        return core.random.rademacher(jax.random.key(self.seed), (self.probes, size), dtype)

    def _moved(self, x: Any, start: float, end: float, *, with_log_det: bool = True) -> tuple[jax.Array, jax.Array]:
        """The places at time `end` of points at time `start`, and the integrals of the divergence."""
        diffrax = _diffrax()
        x = floating(x)
        x = x.astype(core.result_dtype(x, self))

        def field(t: jax.Array, state: Any, arguments: Any) -> Any:
            if with_log_det:
                return self._divergence(t, state[0], arguments)
            velocity, context, _ = arguments
            return velocity(t, state[0], context), state[1]

        def largest(state: Any) -> jax.Array:
            return functools.reduce(jnp.maximum, [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(state)])

        def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Tsit5(),
                jnp.asarray(start, x.dtype),
                jnp.asarray(end, x.dtype),
                None,
                (x, jnp.zeros((), x.dtype)),
                (self.velocity, self.context, self._probes(x.shape[0], x.dtype)),
                stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance, norm=largest),
                max_steps=self.max_steps,
                throw=False,
            )
            solved = solution.result == diffrax.RESULTS.successful
            return jax.tree.map(lambda leaf: jnp.where(solved, leaf[0], jnp.nan), solution.ys)

        # diffrax adds numbers of unlike ranks and dtypes.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            moved, log_det = jax.vmap(one)(x.reshape(-1, x.shape[-1]))
        return moved.reshape(x.shape), log_det.reshape(x.shape[:-1])


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError:
        todo = "Install it with pip install 'jaxprob[flows]'"
        line = core.message("Continuous", "diffrax", "not installed", "the solver of differential equations", todo)
        raise ImportError(line) from None
    return diffrax


def continuous(
    hidden: Sequence[int] = (64, 64), *, probes: int = 0, seed: int = 0, tolerance: float = 1e-5
) -> Architecture:
    """Flows of vectors that follow the velocity field of a network, with tanh between its layers.

    Args:
      hidden: sizes of the hidden layers of the network.
      probes: random vectors of the estimate of the divergence; 0 for the exact one, whose cost grows with the size.
      seed: of those vectors; see `Continuous` for how to draw new ones in a loss.
      tolerance: of the solver.

    Raises:
      TypeError: if `hidden` is something else.
      ValueError: if a number is not whole, or `tolerance` not positive.
      ImportError: without diffrax (the `flows` extra).

    >>> flow = continuous((16,)).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)
    """
    hidden = check_layers("continuous", 1, hidden)
    core.check_whole("continuous", least=0, probes=probes, seed=seed)
    core.check_positive("continuous", tolerance=tolerance)
    _diffrax()
    return Architecture("continuous", core.Bound(_build, hidden, probes, seed, float(tolerance)))


def _build(
    hidden: tuple[int, ...],
    probes: int,
    seed: int,
    tolerance: float,
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    size = vector_size("continuous", shape)
    sizes = (size + 1 + context_size, *hidden, size)
    network = Perceptron.init(key, sizes, activation=jnp.tanh, dtype=dtype)
    return Continuous(Velocity(network), context_width=context_size, tolerance=tolerance, probes=probes, seed=seed)
