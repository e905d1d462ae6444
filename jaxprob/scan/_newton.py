"""Non-linear recurrences in parallel over time: Newton's method on the whole trajectory, certified.

The trajectory of x_t = f(x_{t-1}, u_t) is the root of one system. Each iteration linearises f along the last guess and
solves the affine recurrence that results; what counts in the end is the one-step residual max |x_t - f(x_{t-1}, u_t)|.
Gradients are those of the root (implicit differentiation): one more affine recurrence, however many iterations there
were. What Newton cannot solve, forward or backward, is run step by step.

Source: Lim, Zhu, Selfridge and Kasim (2024), "Parallelizing non-linear sequential models over the sequence length"
(DEER); Gonzalez, Warrington, Smith and Linderman (2024), "Towards scalable and stable parallelization of nonlinear
RNNs" (quasi-DEER, and the damped scale-ELK); Danieli et al. (2025), "ParaRNN", for block-diagonal Jacobians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.scan._decays import STRUCTURES
from jaxprob.scan._functions import made_of
from jaxprob.scan._growth import lyapunov_exponent
from jaxprob.scan._jacobians import Flat, flat, linearized
from jaxprob.scan._methods import Choice, choose, chunk_length
from jaxprob.scan._recurrence import adjoint_states, states_of
from jaxprob.scan._scan import scan
from jaxprob.scan._time import last, reset_mask, shift, take, time_length, where

# Residuals, in roundings of the largest value that a number of the state takes: what Newton goes on improving above,
# and what counts as solved.
_AIM, _SOLVED = 16, 128
# The same for a state of 16 bits, of which 128 roundings may be all there is.
_AIM_LOW, _SOLVED_LOW = 1, 8


class NewtonResult(NamedTuple):
    """A trajectory and what is known of it.

    Attributes:
      states: after each step, time leading.
      final: after the last step, in the order of processing.
      converged: whether Newton's method solved the recurrence: the one-step residual is within tolerance. Where it is
        false `states` come from the sequential scan, or with `fallback=False` from the last iteration.
      residual: max |x_t - f(x_{t-1}, u_t)| of `states`; inf if that is not a number.
      iterations: how many linearised recurrences were solved.
      lyapunov_exponent: mean logarithmic growth of a small difference, a step. Unreliable with an estimated Jacobian.
      unstable: whether it is positive: nearby trajectories part, and no method parallel in time can be expected to
        converge.
      first_nonfinite: the first time, in the order of processing, at which a state, or the step that leads to it, is
        NaN or infinite; -1 if none is.
    """

    states: Any
    final: Any
    converged: jax.Array
    residual: jax.Array
    iterations: jax.Array
    lyapunov_exponent: jax.Array
    unstable: jax.Array
    first_nonfinite: jax.Array


class _Options(NamedTuple):
    """What a program is compiled for."""

    jacobian: str
    probes: int
    method: str
    chunk: int
    reverse: bool
    fallback: bool


def newton(
    step: Callable[[Any, Any], Any],
    init: Any,
    xs: Any = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    reset: Any = None,
    jacobian: str = "dense",
    probes: int = 1,
    damping: Any = 0.0,
    tolerance: Any = None,
    max_iterations: Any = 50,
    guess: Any = None,
    fallback: bool = True,
    method: str = "auto",
    chunk: int | None = None,
) -> NewtonResult:
    """All states of x_t = step(x_{t-1}, u_t) at once, by Newton's method over the trajectory.

    Args:
      step: `(state, x) -> state`, differentiable; the state keeps its structure, shapes and dtypes.
      init: pytree of floating arrays, the state before the first step.
      xs: pytree of arrays (time, ...), or None if `length` is given.
      length: number of steps; needed where `xs` has no arrays.
      reverse: run from the last step to the first.
      reset: booleans (time,): where true the state is `init` again just before that step.
      jacobian: "dense" (n x n a step); "diagonal", for steps in which each number depends on its own past only;
        "block", for a state whose leaves all have one shape, in which each unit depends on its own entries of the
        leaves only (the cell and output of a diagonal LSTM). For other steps the last two are estimates: convergence
        is slower; states and gradients, which are checked, are the same.
      probes: directions in which an estimated Jacobian is probed.
      damping: from 0 (Newton) to 1 (fixed-point iteration): scales the Jacobian by `1 - damping`, which bounds what a
        long product of large Jacobians can do.
      tolerance: the one-step residual that counts as solved; by default, for each number of the state, 128 roundings of
        its largest value (or of one); 8 for a state of 16 bits.
      max_iterations: at most so many linearised recurrences.
      guess: states to start from (time, ...), such as the trajectory before the parameters last changed. By default the
        initial state at all times.
      fallback: run the sequential scan where Newton does not converge.
      method: how the linearised recurrences run (see `affine`).
      chunk: steps of a chunk for method "chunked".

    Returns:
      a `NewtonResult`. Derivatives of `states` and `final` are those of the recurrence; the memory that they need does
      not depend on the number of iterations.

    Raises:
      ValueError: if time axes differ, `step` changes the state's structure, a shape or a dtype, or an option is out of
        range.
      TypeError: if a leaf of the state is not floating point.

    >>> result = newton(lambda x, u: jnp.tanh(0.5 * x + u), jnp.zeros(2), jnp.ones((3, 2)))
    >>> bool(result.converged), result.states.shape
    (True, (3, 2))
    """
    steps = time_length("scan.newton", "xs", xs, length)
    mask = reset_mask("scan.newton", reset, steps)
    init = jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x)), init)
    layout = flat("scan.newton", init, jacobian)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise core.bad_value("scan.newton", "probes", probes, "a number of directions, 1 or more")
    for name, value, fits, wanted in (
        ("damping", damping, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        ("tolerance", tolerance, lambda x: x > 0, "a positive number"),
        ("max_iterations", max_iterations, lambda x: x >= 0 and x % 1 == 0, "a whole number, 0 or more"),
    ):
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        # Under jit a comparison of arrays would be traced, even of known ones.
        number = np.asarray(value)
        kinds = (jnp.floating, jnp.integer)
        if number.shape != () or not any(jnp.issubdtype(number.dtype, kind) for kind in kinds) or not fits(number):
            raise core.bad_value("scan.newton", name, value, wanted)
    how = choose("scan.newton", method, layout.kind, steps).method
    options = _Options(jacobian, probes, how, chunk_length("scan.newton", chunk, steps), reverse, fallback)
    if guess is not None:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), init)
        core.check_same_structure("scan.newton", "guess", guess, like)
    if steps == 0:
        empty = jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), init)
        zero, none = jnp.zeros((), layout.pack(init).dtype), jnp.int32(0)
        return NewtonResult(empty, init, jnp.bool_(True), zero, none, zero - jnp.inf, jnp.bool_(False), none - 1)
    return _program(step, options, steps)(init, xs, mask, guess, damping, tolerance, max_iterations)


def explain_newton(
    step: Any,
    init: Any,
    xs: Any = None,
    *,
    length: int | None = None,
    jacobian: str = "dense",
    method: str = "auto",
    **_: Any,
) -> Choice:
    """How `newton` runs for these arguments, and why."""
    steps = time_length("scan.newton", "xs", xs, length)
    how = choose("scan.newton", method, flat("scan.newton", init, jacobian).kind, steps)
    return Choice(
        "newton", f"each iteration is one affine recurrence ({jacobian} Jacobian), {how.method}: {how.reason}"
    )


@made_of
def _program(step: Callable[[Any, Any], Any], options: _Options, steps: int) -> Callable[..., NewtonResult]:
    def run(
        init: Any, xs: Any, reset: Any, guess: Any, damping: Any, tolerance: Any, max_iterations: Any
    ) -> NewtonResult:
        layout = flat("scan.newton", init, options.jacobian)

        def checked(state: Any, x: Any) -> Any:
            after = step(state, x)
            core.check_same_structure("scan.newton", "the state after a step", after, state)
            return after

        # What the step closes over becomes an argument, so that it can be differentiated.
        opened, constants = jax.closure_convert(checked, init, take(xs, 0))
        system = _System(opened, layout, options, steps)
        start = layout.pack(init)
        first = jnp.broadcast_to(start, (steps, *start.shape)) if guess is None else jax.vmap(layout.pack)(guess)
        # The tolerance of a state of low precision is that of its own rounding.
        eps = max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(init))
        control = (first, damping, tolerance, max_iterations)
        packed, converged, residual, iterations = _root(system, eps, start, xs, reset, constants, control)
        fixed = jax.tree.map(lax.stop_gradient, (packed, start, xs, constants))
        after, jacobians = system.along(fixed[0], fixed[1], fixed[2], reset, fixed[3])
        exponent = lyapunov_exponent(layout.kind, options.method, options.chunk, jacobians, options.reverse)
        # Also of the steps: without a fallback the states may still be the guess.
        finite = jnp.all(jnp.isfinite(fixed[0]) & jnp.isfinite(after), tuple(range(1, packed.ndim)))
        bad = jnp.argmin(finite[::-1] if options.reverse else finite).astype(jnp.int32)
        bad = steps - 1 - bad if options.reverse else bad
        states = jax.vmap(layout.unpack)(packed)
        return NewtonResult(
            states,
            last(states, options.reverse),
            converged,
            residual,
            iterations,
            exponent,
            exponent > 0,
            jnp.where(jnp.all(finite), -1, bad),
        )

    return jax.jit(run)


class _System(NamedTuple):
    """The recurrence on packed states, all of whose steps can be taken at once."""

    step: Callable[..., Any]
    layout: Flat
    options: _Options
    steps: int

    def one(self, packed: jax.Array, x: Any, constants: Any) -> jax.Array:
        """The packed state after a step."""
        return self.layout.pack(self.step(self.layout.unpack(packed), x, *constants))

    def before(self, states: jax.Array, start: jax.Array, reset: jax.Array | None) -> jax.Array:
        """The state from which each step was taken."""
        previous = shift(states, start, self.options.reverse)
        return previous if reset is None else where(reset, jnp.broadcast_to(start, previous.shape), previous)

    def after(self, states: jax.Array, start: jax.Array, xs: Any, reset: Any, constants: Any) -> jax.Array:
        """Each step, taken from the state before it."""
        previous = self.before(states, start, reset)
        return jax.vmap(lambda state, x: self.one(state, x, constants), axis_size=self.steps)(previous, xs)

    def along(
        self, states: jax.Array, start: jax.Array, xs: Any, reset: Any, constants: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Each step, and its Jacobian."""
        both = linearized(lambda state, x: self.one(state, x, constants), self.options.jacobian, self.options.probes)
        return jax.vmap(both, axis_size=self.steps)(self.before(states, start, reset), xs)


def _largest(x: jax.Array) -> jax.Array:
    """The largest absolute value; inf if any is not a number, which XLA's maximum may overlook."""
    return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), jnp.inf))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _root(
    system: _System, eps: float, start: jax.Array, xs: Any, reset: Any, constants: Any, control: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The trajectory, whether it converged, its residual and the number of iterations."""
    options = system.options
    structure = STRUCTURES[system.layout.kind]
    guess, damping, tolerance, max_iterations = control
    dtype = start.dtype
    aim, solved = (_AIM, _SOLVED) if eps < 1e-5 else (_AIM_LOW, _SOLVED_LOW)

    def evaluate(states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        value, jacobian = system.along(states, start, xs, reset, constants)
        residual = _largest(states - value)
        # Each number of a state by its own largest value: a counter among them hides no error of the others.
        size = jnp.max(jnp.where(jnp.isfinite(value), jnp.abs(value), 0.0), 0, keepdims=True)
        # In units in which `solved` roundings, or the tolerance asked for, are one.
        unit = (solved * eps) * jnp.maximum(size, 1.0) if tolerance is None else jnp.asarray(tolerance, dtype)
        return value, jacobian, residual, _largest((states - value) / unit)

    def goes_on(carry: Any) -> jax.Array:
        _, _, _, residual, error, before, count = carry
        # Solved already, it is improved for as long as that halves the error.
        enough = error <= (aim / solved if tolerance is None else 1.0)
        stuck = (error <= 1.0) & ~(error < 0.5 * before)
        return (count < max_iterations) & jnp.isfinite(residual) & ~enough & ~stuck

    def iterate(carry: Any) -> Any:
        states, value, jacobian, _, error, _, count = carry
        previous = system.before(states, start, reset)
        factor = (1 - jnp.asarray(damping, dtype)) * jacobian
        increment = value - structure.apply(factor, previous)
        new = states_of(
            structure, options.method, options.chunk, options.reverse, None, factor, increment, start, reset
        )
        # Where a product of Jacobians overflows, one step from the last guess keeps the first steps right.
        new = jnp.where(jnp.isfinite(new), new, value)
        return new, *evaluate(new), error, count + 1

    guess = guess.astype(dtype)
    carry = (guess, *evaluate(guess), jnp.asarray(jnp.inf, dtype), jnp.int32(0))
    states, _, _, residual, error, _, count = lax.while_loop(goes_on, iterate, carry)
    converged = error <= 1.0
    if not options.fallback:
        return states, converged, residual, count

    def step_by_step() -> tuple[jax.Array, jax.Array]:
        def body(state: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            after = system.one(state, x, constants)
            return after, after

        found = scan(body, start, xs, length=system.steps, reverse=options.reverse, reset=reset)[1]
        return found, _largest(found - system.after(found, start, xs, reset, constants))

    # One series of a batch that was not solved sends all there: with a branch for each, all would always go.
    states, residual = lax.cond(core.all_of_batch(converged), lambda: (states, residual), step_by_step)
    return states, converged, residual, count


@_root.defjvp
def _root_jvp(system: _System, eps: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    start, xs, reset, constants, control = primals
    result = _root(system, eps, start, xs, reset, constants, control)
    states = result[0]
    moved = (tangents[0], tangents[1], tangents[3])

    def direct(start: jax.Array, xs: Any, constants: Any) -> jax.Array:
        return system.after(states, start, xs, reset, constants)

    _, change = jax.jvp(direct, (start, xs, constants), moved)
    no = (np.zeros((), jax.dtypes.float0), jnp.zeros_like(result[2]), np.zeros((), jax.dtypes.float0))
    return result, (_linear(system, states, start, xs, reset, constants, change), *no)


def _linear(
    system: _System, states: jax.Array, start: jax.Array, xs: Any, reset: Any, constants: Any, change: jax.Array
) -> jax.Array:
    """Solves v_t = J_t v_{t-1} + change_t, the recurrence linearised along the trajectory, and its transpose.

    The Jacobian of the structure asked for is tried first; if it is not the true one, which the residual tells, the
    derivative goes step by step.
    """
    options = system.options
    structure = STRUCTURES[system.layout.kind]
    exact = options.jacobian == "dense"

    def moves(states: jax.Array) -> jax.Array:
        return system.after(states, start, xs, reset, constants)

    def operator(v: jax.Array) -> jax.Array:
        return v - jax.jvp(moves, (states,), (v,))[1]

    def certified(found: jax.Array, right: jax.Array, apply: Any, otherwise: Callable[[], jax.Array]) -> jax.Array:
        if exact:
            return found
        size = jnp.max(jnp.abs(found))
        rounding = _SOLVED * jnp.finfo(found.dtype).eps * size
        error = _largest(apply(found) - right)
        return lax.cond(core.all_of_batch((error <= rounding) & jnp.isfinite(error)), lambda: found, otherwise)

    def before() -> jax.Array:
        return system.before(states, start, reset)

    def jacobians() -> jax.Array:
        return system.along(states, start, xs, reset, constants)[1]

    def solve(apply: Any, right: jax.Array) -> jax.Array:
        zero = jnp.zeros_like(right[0])
        found = states_of(
            structure, options.method, options.chunk, options.reverse, None, jacobians(), right, zero, reset
        )

        def body(v: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            at, x, added = x
            v = jax.jvp(lambda state: system.one(state, x, constants), (at,), (v,))[1] + added
            return v, v

        def step_by_step() -> jax.Array:
            return scan(body, zero, (before(), xs, right), reverse=options.reverse, reset=reset)[1]

        return certified(found, right, apply, step_by_step)

    def solve_transposed(apply: Any, right: jax.Array) -> jax.Array:
        found = adjoint_states(
            structure, options.method, options.chunk, options.reverse, None, jacobians(), right, reset
        )

        def body(flow: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            at, x, added, restart = x
            v = flow + added
            flow = jax.vjp(lambda state: system.one(state, x, constants), at)[1](v)[0]
            return (flow if restart is None else jnp.where(restart, 0.0, flow)), v

        def step_by_step() -> jax.Array:
            zero = jnp.zeros_like(right[0])
            return scan(body, zero, (before(), xs, right, reset), reverse=not options.reverse)[1]

        return certified(found, right, apply, step_by_step)

    return lax.custom_linear_solve(operator, change, solve, solve_transposed)
