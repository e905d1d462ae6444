"""S4D against loops in float64 NumPy, SciPy's discretisations, and itself by other methods."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from jaxprob import scan
from jaxprob.models import sequence
from tests.models.sequence import _diagonal as check

ALL = ("convolution", *check.METHODS)


def net_of(**options):
    return sequence.s4d(**{"width": 3, "state": 8, **options})


# Every initialisation, both discretisations and every method, not all with all.
CASES = [
    {"method": "convolution"},
    {"method": "sequential"},
    {"method": "chunked", "chunk": 3},
    {"method": "associative"},
    {"initialization": "inv", "discretization": "bilinear", "method": "convolution"},
    {"initialization": "legs", "method": "convolution", "rate": 0.5},
    {"initialization": "real", "discretization": "bilinear", "rate": 2.0},
    {"initialization": "random"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize(("steps", "resets"), [(1, ()), (7, ()), (50, (0, 20, 49))])
def test_a_sequence_is_the_loop(options, steps, resets):
    known = {name: options[name] for name in ("discretization", "rate") if name in options}
    oracle = functools.partial(check.s4d, **known)
    check.agrees(net_of(**options), oracle, steps, resets, tolerance=1e-5)


@pytest.mark.parametrize("resets", [(), (0, 300, 1023)])
@pytest.mark.parametrize("method", ["convolution", "sequential", "chunked"])
def test_long_sequences_by_every_method(method, resets):
    check.agrees(net_of(width=2, state=16, method=method), check.s4d, 1024, resets)


@pytest.mark.parametrize("method", ["convolution", "sequential", "chunked"])
def test_very_long_sequences(method):
    check.agrees(net_of(width=2, state=4, step_min=1e-4, method=method), check.s4d, 16_384)
    if method != "convolution":
        check.agrees(net_of(width=2, state=4, step_min=1e-4, method=method), check.s4d, 16_384, (0, 9000))


def test_a_convolution_is_the_scan():
    """S009: to 1e-5 of the largest output; the states too."""
    nets = [net_of(state=16, initialization="legs", method=method) for method in ("convolution", "sequential")]
    params, xs, state, _ = check.problem(nets[0], 1024)
    (ys, final), (wanted, last) = (jax.jit(net.apply)(params, jnp.asarray(xs), state) for net in nets)
    check.close(ys, wanted, 1e-5)
    check.close(check.as_numbers(final), check.as_numbers(last), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("resets", [(), (0, 9000)])
def test_very_long_sequences_as_a_tree(resets):
    check.agrees(net_of(width=2, state=4, step_min=1e-4, method="associative"), check.s4d, 16_384, resets)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_steps_are_the_loop(discretization):
    oracle = functools.partial(check.s4d, discretization=discretization)
    check.steps_agree(net_of(discretization=discretization), oracle, 30)


def test_a_sequence_goes_on():
    check.goes_on(net_of())


def test_gradients_are_equal_between_methods():
    nets = [net_of(method=method) for method in ALL]
    check.gradients_agree(nets, 40)
    check.gradients_agree(nets[:2], 40, (0, 13))


@pytest.mark.slow
def test_gradients_of_long_sequences_are_equal_between_methods():
    nets = [net_of(width=2, method=method) for method in ("convolution", "sequential", "chunked")]
    check.gradients_agree(nets, 1024)
    check.gradients_agree(nets[1:], 1024, (0, 500))


@pytest.mark.parametrize(
    "options", [{"discretization": "zoh"}, {"discretization": "bilinear", "method": "sequential"}], ids=str
)
@pytest.mark.usefixtures("x64")
def test_gradients_are_central_differences(options):
    check.gradients_are_differences(net_of(width=2, state=4, **options), 20)


def kernel_by_loop(a, weights, step, length):
    """Modes one by one, times one by one, in double precision."""
    found = np.zeros(length)
    for mode, weight in zip(a, weights, strict=True):
        gain, factor = (np.exp(mode * step) - 1) / mode, np.exp(mode * step)
        for time in range(length):
            found[time] += 2 * (weight * gain * factor**time).real
    return found


@pytest.mark.parametrize("length", [1, 2, 1000, 1025])
@pytest.mark.parametrize("step", [1e-3, 1e-2, 1e-1])
def test_the_kernel_of_linear_frequencies(length, step):
    """-1/2 + i pi n, in float32. Phases reach 970, and 3e-5 of that is rounding."""
    rng = np.random.default_rng(0)
    a = -0.5 + 1j * np.pi * np.arange(32)
    weights = (rng.normal(size=32) + 1j * rng.normal(size=32)) / np.sqrt(2)
    single = [scan.Complex(jnp.float32(x.real), jnp.float32(x.imag)) for x in (a, weights)]
    found = sequence.s4d_kernel(*single, jnp.float32(step), length)
    # Of the same numbers: those that went in, rounded to float32.
    a, weights = (np.float64(x.real) + 1j * np.float64(x.imaginary) for x in single)
    wanted = kernel_by_loop(a, weights, float(np.float32(step)), length)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    check.close(found, wanted, 3e-6)


@pytest.mark.usefixtures("x64")
def test_the_kernel_of_the_core_in_double_precision():
    """Of its first parameters, to rounding: an impulse through the core is the kernel and the skip."""
    net = sequence.s4d(2, state=64)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), net.init(jax.random.key(0), jnp.zeros((1, 2))))
    p = check.numbers(params)
    impulse = jnp.zeros((100, 2)).at[0].set(1.0)
    assert impulse.dtype == jnp.float64
    ys, _ = net.apply(params, impulse)
    assert ys.dtype == jnp.float64
    for k in range(2):
        a = -np.exp(p["decay_log_rate"][k]) + 1j * p["decay_frequency"][k]
        wanted = kernel_by_loop(a, p["input"][k] * p["output"][k], np.exp(p["decay_log_step"][k]), 100)
        wanted[0] += p["skip"][k]
        check.close(ys[:, k], wanted, 1e-12)


@pytest.mark.parametrize("initialization", ["lin", "inv", "legs", "real", "random"])
def test_initial_eigenvalues(initialization):
    params = sequence.s4d(2, state=8, initialization=initialization).init(jax.random.key(3), jnp.zeros((1, 2)))
    p = check.numbers(params)
    a = -np.exp(p["decay_log_rate"]) + 1j * p["decay_frequency"]
    if initialization == "random":
        np.testing.assert_allclose(a.real, -0.5, rtol=1e-6)
        assert len(np.unique(a.imag)) == 8
        assert np.all(abs(a.imag) < 5)
        return
    matrix, _ = sequence.hippo_legs(8)
    vector = np.sqrt(np.arange(8) + 0.5)
    legs = np.linalg.eigvals(matrix + np.outer(vector, vector))
    wanted = {
        "lin": [-0.5, -0.5 + 1j * np.pi, -0.5 + 2j * np.pi, -0.5 + 3j * np.pi],
        "inv": [-0.5 + 8j / np.pi * (8 / (2 * n + 1) - 1) for n in range(4)],
        "legs": sorted(legs[legs.imag > 0], key=lambda x: x.imag),
        "real": [-1, -2, -3, -4],
    }[initialization]
    np.testing.assert_allclose(a, [wanted, wanted], rtol=1e-6)


def test_first_parameters_have_the_transfer_function_of_legs():
    """S009: at s = 0.5 the error of the first four basis functions falls by 4 as the state doubles."""
    errors = []
    for n in (16, 32, 64, 128):
        p = check.numbers(sequence.s4d(1, state=n, initialization="legs").init(jax.random.key(0), jnp.zeros((1, 1))))
        a = -np.exp(p["decay_log_rate"][0]) + 1j * p["decay_frequency"][0]
        basis = sequence.normal_plus_low_rank(n).eigenvectors[:4, n // 2 :]
        found = 2 * (basis @ (p["input"][0] / (0.5 - a))).real
        matrix, vector = sequence.hippo_legs(n)
        wanted = np.linalg.solve(0.5 * np.eye(n) - matrix, vector)[:4]
        errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    assert errors[0] < 2e-3
    assert np.polyfit(range(4), np.log2(errors), 1)[0] <= -1.7


def test_the_range_of_time_steps():
    net = sequence.s4d(1000, state=2, step_min=1e-3, step_max=1e-1)
    log_step = check.numbers(net.init(jax.random.key(0), jnp.zeros((1, 1000))))["decay_log_step"]
    assert math.log(1e-3) <= log_step.min() < math.log(1.1e-3)
    assert math.log(0.9e-1) < log_step.max() <= math.log(1e-1)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("turn", [0.0, 0.7, math.pi / 2])
def test_the_hold_has_its_limit_where_modes_do_not_decay(size, turn):
    """Gain (exp(z) - 1) / z and its derivative with respect to the eigenvalue, 1 and 1/2 at z = 0."""
    step = 0.5
    a = -size * np.exp(1j * turn) / step

    def gain(real, imaginary):
        return sequence.discretize(scan.Complex(real, imaginary), jnp.float32(step)).gain

    real, imaginary = jnp.float32(a.real), jnp.float32(a.imag)
    z = step * (float(real) + 1j * float(imaginary))
    if abs(z) < 0.1:
        # Seven terms of the series are exact to rounding.
        wanted = step * sum(z**k / math.factorial(k + 1) for k in range(8))
        slope = step**2 * sum((k + 1) * z**k / math.factorial(k + 2) for k in range(8))
    else:
        wanted, slope = step * (np.exp(z) - 1) / z, step**2 * ((z - 1) * np.exp(z) + 1) / z**2
    found = gain(real, imaginary)
    np.testing.assert_allclose(complex(found.real, found.imaginary), wanted, rtol=1e-6)
    by_real = jax.jacrev(gain, (0, 1))(real, imaginary)
    np.testing.assert_allclose(complex(by_real.real[0], by_real.imaginary[0]), slope, rtol=2e-6)
    # An analytic function: the derivative by the imaginary part is i times that by the real one.
    np.testing.assert_allclose(complex(by_real.real[1], by_real.imaginary[1]), 1j * slope, rtol=2e-6)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("a", [-0.5 + 3j, -4 + 0j, -1 + 40j, -30 + 0j, -0.001 + 0.01j])
def test_discretisations_are_those_of_scipy(discretization, a):
    """On a complex mode as a real matrix of two rows."""
    matrix = np.array([[a.real, -a.imag], [a.imag, a.real]])
    step = 0.1
    whole = signal.cont2discrete((matrix, np.array([[1.0], [0.0]]), np.eye(2), np.zeros((2, 1))), step, discretization)
    found = sequence.discretize(scan.Complex(jnp.float32(a.real), jnp.float32(a.imag)), step, discretization)
    decay = np.exp(np.float64(found.decay.log_modulus) + 1j * np.float64(found.decay.phase))
    np.testing.assert_allclose([decay.real, decay.imag], whole[0][:, 0], rtol=2e-6, atol=1e-6)
    gain = whole[1][:, 0]
    np.testing.assert_allclose([found.gain.real, found.gain.imaginary], gain, rtol=2e-6, atol=1e-7)


def test_a_bilinear_mode_that_vanishes_at_once():
    """z / 2 = -1: nothing is kept, and derivatives are finite."""

    def sums(real, imaginary):
        kernel = sequence.s4d_kernel(
            scan.Complex(real, imaginary), scan.Complex(jnp.ones(1), jnp.zeros(1)), 1.0, 3, discretization="bilinear"
        )
        return jnp.sum(kernel), kernel

    (grads, kernel) = jax.grad(sums, (0, 1), has_aux=True)(jnp.float32([-2.0]), jnp.float32([0.0]))
    np.testing.assert_allclose(kernel, [1.0, 0.0, 0.0], atol=1e-12)
    assert np.all(np.isfinite(grads))


def test_another_rate_of_sampling():
    """The same parameters on every second sample, with twice the step, see the same signal."""
    times = np.arange(0, 400)
    smooth = np.stack([np.sin(0.02 * times), np.cos(0.031 * times)], 1).astype(np.float32)
    net = sequence.s4d(2, state=8, step_min=1e-3, step_max=1e-2)
    params, *_ = check.problem(net, 1)
    fine, _ = net.apply(params, jnp.asarray(smooth))
    coarse, _ = net.clone(rate=2.0).apply(params, jnp.asarray(smooth[::2]))
    other, _ = net.apply(params, jnp.asarray(smooth[::2]))
    assert np.max(abs(coarse - fine[::2])) < 0.02 * np.max(abs(fine))
    assert np.max(abs(other - fine[::2])) > 0.1 * np.max(abs(fine))


@pytest.mark.parametrize("method", ["convolution", "sequential"])
def test_bfloat16_inputs_and_long_memories(method):
    net = net_of(width=2, state=4, method=method)
    params, *_ = check.problem(net, 1)
    # exp(-1e-4) and exp(-1e-3) a step.
    log_step = jnp.log(jnp.array([1e-4, 1e-3]))
    params["params"] |= {"decay_log_rate": jnp.zeros((2, 2)), "decay_log_step": log_step}
    check.low_precision(net, check.s4d, params)


def test_batches():
    check.batches_are_loops(net_of())


def test_a_convolution_holds_no_array_of_width_state_and_time():
    net, steps = sequence.s4d(4, state=64, method="convolution"), 4096
    params, xs, _, _ = check.problem(net, steps)

    def gradient(params, xs):
        return jax.grad(lambda params: jnp.sum(net.apply(params, xs)[0] ** 2))(params)

    assert largest(jax.make_jaxpr(gradient)(params, jnp.asarray(xs)).jaxpr) <= 2 * 4 * 64 * 65 + 4 * 4 * steps
    recurrence = jax.make_jaxpr(sequence.s4d(4, state=64, method="sequential").apply)(params, jnp.asarray(xs))
    assert largest(recurrence.jaxpr) >= 4 * 32 * steps


def largest(jaxpr):
    """Numbers in the largest array that a program makes."""
    sizes = [math.prod(out.aval.shape) for eqn in jaxpr.eqns for out in eqn.outvars]
    inner = [
        getattr(value, "jaxpr", value)
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
        if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    ]
    return max(sizes + [largest(one) for one in inner], default=0)


def test_a_nan_goes_no_further_than_a_reset():
    xs = jnp.ones((6, 3)).at[1].set(jnp.nan)
    net = net_of()
    params, *_ = check.problem(net, 1)
    ys, state = net.apply(params, xs, None, jnp.array([False, False, False, True, False, False]))
    assert np.isnan(ys).all(1).tolist() == [False, True, True, False, False, False]
    assert not np.isnan(ys[jnp.array([0, 3, 4, 5])]).any()
    assert np.all(np.isfinite(state.real))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"width is 0; expected a whole number, 1 or more"),
        ({"state": 7}, r"state is 7; expected an even number, 2 or more\. Modes come in conjugate pairs"),
        ({"state": 0}, r"state is 0; expected an even number"),
        (
            {"initialization": "hippo"},
            r"initialization is hippo; expected one of 'lin', 'inv', 'legs', 'real'",
        ),
        ({"discretization": "euler"}, r"discretization is euler; expected one of 'zoh', 'bilinear'"),
        ({"step_min": 0.0}, r"step_min is 0\.0; expected a positive number"),
        ({"step_max": math.inf}, r"step_max is inf; expected a positive number"),
        ({"step_min": 0.2}, r"step_min is 0\.2; expected at most step_max, 0\.1"),
        ({"rate": -1}, r"rate is -1; expected a positive number"),
        ({"method": "fft"}, r"method is fft; expected one of 'convolution', 'auto', 'sequential'"),
        ({"chunk": 0}, r"chunk is 0; expected a whole number, 1 or more"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=r"^sequence\.s4d: " + message) as error:
        net_of(**options)
    assert "\n" not in str(error.value)


def test_bad_arguments_of_functions_are_one_line():
    one = scan.Complex(jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match=r"^sequence\.s4d_kernel: length is 0; expected a positive number of times"):
        sequence.s4d_kernel(one, one, 1.0, 0)
    with pytest.raises(ValueError, match=r"^sequence\.discretize: discretization is euler; expected one of"):
        sequence.discretize(one, 1.0, "euler")


def test_a_state_of_another_core_is_one_line():
    net = net_of()
    params, *_ = check.problem(net, 1)
    with pytest.raises(ValueError, match=r"sequence\.s4d: state is .*; expected real \(3, 4\), imaginary \(3, 4\)"):
        net.apply(params, jnp.zeros((2, 3)), net_of(state=6).initial_state())
