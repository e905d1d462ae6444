"""`scan.affine` with time over 8 and 4 virtual devices: what a float64 loop, or one device, gives.

Outside of `shard_map` by `mesh=`, also where the steps do not divide; inside of it by `axis_name=`, batch over the
other axis of the mesh, with and without JAX's check of what varies.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import scan
from jaxprob.scan import Complex, Exponential
from tests.scan import _loops as loops
from tests.scan._loops import quick

BAR = 1e-5  # of the largest number; what comes from another device is of size one
MESHES = {n: jax.make_mesh((n,), ("time",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]) for n in (8, 4)}
KINDS = ("elementwise", "constant", "dense", "constant dense", "phase", "constant exponential")


def draw(name, steps, seed=0):
    """Real float32 arrays: decay, increment, init; the state has 3 numbers."""
    rng = np.random.default_rng([seed, steps])
    many = 1 if "constant" in name else steps
    if "dense" in name:
        decay = (rng.uniform(-0.8, 0.8, size=(many, 3, 3)),)
    elif name == "phase":
        decay = -rng.uniform(0.1, 1, size=(many, 3)), rng.uniform(-3, 3, size=(many, 3))
    elif "exponential" in name:
        decay = (-rng.uniform(0.1, 1, size=(many, 3)),)
    else:
        decay = (rng.uniform(-0.95, 0.95, size=(many, 3)),)
    if "dense" in name:
        decay = (decay[0] / 1.5,)
    pair = 2 if name == "phase" else 1
    return jax.tree.map(
        np.float32, (decay, tuple(rng.normal(size=(pair, steps, 3))), tuple(rng.normal(size=(pair, 3))))
    )


def arguments(name, problem):
    decay, increment, init = jax.tree.map(jnp.asarray, problem)
    if name == "phase":
        return Exponential(*decay), Complex(*increment), Complex(*init)
    return Exponential(*decay) if "exponential" in name else decay[0], increment[0], init[0]


def numbers(name, problem):
    decay, increment, init = jax.tree.map(np.float64, problem)
    if name == "phase":
        return np.exp(decay[0] + 1j * decay[1]), increment[0] + 1j * increment[1], init[0] + 1j * init[1]
    return np.exp(decay[0]) if "exponential" in name else decay[0], increment[0], init[0]


def plain(x):
    return np.asarray(x.real) + 1j * np.asarray(x.imaginary) if isinstance(x, Complex) else np.asarray(x)


def mask_of(steps, name):
    return loops.masks(np.random.default_rng(steps), steps)[name]


# Kind, method, devices, steps, reverse, reset. Fewer steps than devices; as many; one more; primes; many.
CASES = [
    ("elementwise", "sequential", 8, 16, False, "none"),
    ("elementwise", "chunked", 4, 17, True, "random"),
    ("elementwise", "associative", 4, 1000, True, "random"),
    ("elementwise", "sequential", 4, 1, True, "all"),
    ("constant", "sequential", 4, 17, False, "random"),
    ("constant", "chunked", 8, 8, True, "none"),
    ("constant", "associative", 8, 40, False, "first"),
    ("constant", "chunked", 4, 1, False, "none"),
    ("dense", "sequential", 4, 1000, True, "none"),
    ("dense", "chunked", 8, 1000, False, "random"),
    ("dense", "associative", 4, 17, False, "random"),
    ("constant dense", "sequential", 8, 8, False, "random"),
    ("constant dense", "chunked", 4, 17, True, "none"),
    ("constant dense", "associative", 4, 3, True, "first"),
    ("phase", "sequential", 4, 17, True, "all"),
    ("phase", "chunked", 4, 1000, False, "random"),
    ("phase", "associative", 8, 9, False, "none"),
    ("constant exponential", "sequential", 8, 1000, True, "first"),
    ("constant exponential", "chunked", 4, 2, False, "random"),
    ("constant exponential", "associative", 4, 8, True, "none"),
]


@pytest.mark.parametrize(("name", "method", "devices", "steps", "reverse", "reset"), CASES)
def test_equals_a_loop(name, method, devices, steps, reverse, reset):
    problem, mask = draw(name, steps), mask_of(steps, reset)
    run = functools.partial(scan.affine, method=method, mesh=MESHES[devices], axis_name="time")
    run = quick(functools.partial(run, reverse=reverse, reset=mask, chunk=3 if steps > 16 else None))
    got = run(*arguments(name, problem))
    states, final = loops.affine(*numbers(name, problem), reverse=reverse, reset=mask)
    assert loops.error(plain(got.states), states) <= BAR
    assert loops.error(plain(got.final), final) <= 4 * BAR
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(got.final))


def objective(name, problem, **options):
    """Bends all states and the final one, with another weight on each number."""
    found = jax.tree.leaves(scan.affine(*arguments(name, problem), **options))
    return sum(jnp.sum(jnp.sin(x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))) for x in found)


@pytest.mark.parametrize(
    ("name", "method", "devices", "steps", "reverse", "reset"),
    [CASES[k] for k in (1, 4, 5, 7, 10, 12, 14, 16, 19)],
)
def test_gradients_equal_those_of_one_device(name, method, devices, steps, reverse, reset):
    """With respect to decay, increment and init; those of one device are compared with a loop elsewhere."""
    problem = draw(name, steps, seed=1)
    options = {"reverse": reverse, "reset": mask_of(steps, reset)}
    one = functools.partial(objective, name, method="sequential", **options)
    many = functools.partial(objective, name, method=method, mesh=MESHES[devices], axis_name="time", **options)
    want = quick(jax.value_and_grad(one))(problem)
    got = quick(jax.value_and_grad(many))(problem)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert loops.error(x, y) <= 2 * BAR


# --- inside the user's shard_map: batch over 2, time over 4

STEPS = 12


def both_axes():
    return jax.make_mesh((2, 4), ("batch", "time"), axis_types=(AxisType.Auto,) * 2)


def batch(name, size=2):
    """Problems of several sequences; decays are shared by all of them."""
    problems = [draw(name, STEPS, seed) for seed in range(size)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *[p[1:] for p in problems])
    resets = np.stack([mask_of(STEPS, "random"), mask_of(STEPS, "first")])
    return problems[0][0], *stacked, resets


def inside(name, method, reverse, checked, resets):
    """A function of the whole arrays that runs pieces inside `shard_map`."""

    def piece(decay, increment, init, reset):
        def one(increment, init, reset):
            args = arguments(name, (decay, increment, init))
            return scan.affine(*args, reverse=reverse, reset=reset, method=method, chunk=2, axis_name="time")

        return jax.vmap(one)(increment, init, reset)

    over = P("batch", "time")
    return jax.shard_map(
        piece,
        mesh=both_axes(),
        in_specs=(P() if "constant" in name else P("time"), over, P("batch"), over if resets else None),
        out_specs=scan.Trajectory(over, P("batch")),
        check_vma=checked,
    )


@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
@pytest.mark.parametrize(
    ("name", "method", "reverse", "resets"),
    [
        ("elementwise", "sequential", False, True),
        ("constant dense", "chunked", True, True),
        ("phase", "associative", True, False),
        ("constant exponential", "sequential", True, True),
        ("dense", "chunked", False, False),
        ("constant", "associative", False, True),
    ],
)
def test_inside_shard_map(name, method, reverse, resets, checked):
    """States, `final` on every device, and gradients."""
    decay, increment, init, masks = batch(name)
    masks = masks if resets else None
    run = inside(name, method, reverse, checked, resets)

    def total(function, decay, increment, init):
        found = jax.tree.leaves(function(decay, increment, init, masks))
        return sum(jnp.sum(jnp.sin(x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))) for x in found), found

    def alone(decay, increment, init, masks):
        def one(increment, init, reset):
            args = arguments(name, (decay, increment, init))
            return scan.affine(*args, reverse=reverse, reset=reset, method="sequential")

        return jax.vmap(one)(increment, init, masks)

    def slopes(function):
        program = jax.value_and_grad(functools.partial(total, function), (0, 1, 2), has_aux=True)
        return quick(program)(decay, increment, init)

    ((value, found), got), ((_, _), want) = slopes(run), slopes(alone)
    assert np.isfinite(value)
    half = len(found) // 2
    for k in range(2):
        states, final = loops.affine(
            *numbers(name, (decay, *jax.tree.map(lambda x: x[k], (increment, init)))),  # noqa: B023
            reverse=reverse,
            reset=None if masks is None else masks[k],
        )
        own = [np.asarray(x[k]) for x in found]
        own = own if half == 1 else [own[0] + 1j * own[1], own[2] + 1j * own[3]]
        assert loops.error(own[0], states) <= BAR
        assert loops.error(own[1], final) <= 4 * BAR
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert loops.error(x, y) <= 2 * BAR


def test_an_init_made_inside_of_shard_map():
    """Zeros are typed as the same on every device, while what is carried is not."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    decay = jnp.full((1, 1), 0.5)
    for method in ("sequential", "chunked", "associative"):
        piece = lambda x: scan.affine(decay, x, jnp.ones(2), method=method, axis_name="time")  # noqa: B023, E731
        run = jax.shard_map(piece, mesh=MESHES[4], in_specs=P("time"), out_specs=scan.Trajectory(P("time"), P()))
        states, final = loops.affine(np.full((1, 1), 0.5), np.float64(x), np.ones(2))
        got = jax.jit(run)(x)
        assert loops.error(got[0], states) <= BAR
        assert loops.error(got[1], final) <= BAR


def test_batch_alone_over_devices():
    """Without `axis_name` each device runs its own sequences to the end."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5, 2)), jnp.float32)
    for method in ("sequential", "chunked", "associative"):
        piece = lambda x: jax.vmap(lambda x: scan.affine(jnp.full((1, 1), 0.5), x, method=method).states)(x)  # noqa: B023, E731
        run = jax.shard_map(piece, mesh=both_axes(), in_specs=P(("batch", "time")), out_specs=P(("batch", "time")))
        got = jax.jit(run)(x)
        for k in range(8):
            want = loops.affine(np.full((1, 1), 0.5), np.float64(x[k]), np.zeros(2))[0]
            assert loops.error(got[k], want) <= BAR


def test_second_derivatives_over_devices():
    problem = draw("elementwise", 5, seed=2)
    one = functools.partial(objective, "elementwise", method="sequential")
    many = functools.partial(objective, "elementwise", method="sequential", mesh=MESHES[4], axis_name="time")
    whole = lambda f: quick(jax.hessian(lambda decay: f((decay, *problem[1:]))))(problem[0])  # noqa: E731
    for x, y in zip(jax.tree.leaves(whole(many)), jax.tree.leaves(whole(one)), strict=True):
        assert loops.error(x, y) <= 4 * BAR


def test_nothing_is_compiled_twice():
    args = arguments("elementwise", draw("elementwise", 9))
    for method in ("sequential", "chunked", "associative"):
        run = functools.partial(scan.affine, *args, method=method, mesh=MESHES[4], axis_name="time")
        run()
        with loops.compilations() as compiled:
            run()
        assert compiled == []


def test_without_steps():
    """`init` comes back, and a wrong axis is an error all the same."""
    decay, increment, init = arguments("elementwise", draw("elementwise", 0))
    got = scan.affine(decay, increment, init, mesh=MESHES[4], axis_name="time")
    np.testing.assert_array_equal(got.final, init)
    assert got.states.shape == (0, 3)
    with pytest.raises(ValueError, match=r"^scan.affine: axis_name is space; expected an axis of the mesh"):
        scan.affine(decay, increment, init, mesh=MESHES[4], axis_name="space")


@pytest.mark.parametrize("method", ["sequential", "chunked", "associative"])
def test_nothing_crosses_a_reset_on_another_device(method):
    """The NaN is on the first device, the reset on the second; the last two have neither."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("time",))
    increment, reset = np.ones(16, np.float32), np.arange(16) == 6
    increment[1] = np.nan
    got = scan.affine(np.full(16, 0.5, np.float32), increment, reset=reset, method=method, mesh=mesh, axis_name="time")
    np.testing.assert_allclose(got.states[6:], 2 - 0.5 ** np.arange(10), rtol=1e-6)
    np.testing.assert_allclose(got.final, 2 - 0.5**9, rtol=1e-6)
    assert np.isnan(np.asarray(got.states[1:6])).all()
