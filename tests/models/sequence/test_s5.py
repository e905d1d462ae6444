"""S5 against loops in float64 NumPy, and against S4D where both are the same system."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from jaxprob.models import sequence
from tests.models.sequence import _diagonal as check


def net_of(**options):
    return sequence.s5(**{"width": 3, "state": 8, **options})


CASES = [
    {"method": "sequential"},
    {"method": "chunked", "chunk": 3},
    {"method": "associative"},
    {"initialization": "lin", "blocks": 2, "rate": 0.5},
    {"initialization": "random", "blocks": 2, "discretization": "bilinear"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize(("steps", "resets"), [(1, ()), (7, ()), (50, (0, 20, 49))])
def test_a_sequence_is_the_loop(options, steps, resets):
    known = {name: options[name] for name in ("discretization", "rate") if name in options}
    check.agrees(net_of(**options), functools.partial(check.s5, **known), steps, resets, tolerance=1e-5)


@pytest.mark.parametrize(("steps", "resets"), [(1024, ()), (1024, (0, 300, 1023)), (16_384, ())])
@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_long_sequences(method, steps, resets):
    check.agrees(net_of(step_min=1e-4, method=method), check.s5, steps, resets)


@pytest.mark.slow
@pytest.mark.parametrize("resets", [(), (0, 9000)])
def test_very_long_sequences_as_a_tree(resets):
    check.agrees(net_of(step_min=1e-4, method="associative"), check.s5, 16_384, resets)


def test_steps_are_the_loop():
    check.steps_agree(net_of(), check.s5, 30)


def test_a_sequence_goes_on():
    check.goes_on(net_of())


def test_gradients_are_equal_between_methods():
    check.gradients_agree([net_of(method=method) for method in check.METHODS], 40, (0, 13))


@pytest.mark.usefixtures("x64")
def test_gradients_are_central_differences():
    check.gradients_are_differences(net_of(width=2, state=4), 20)


@pytest.mark.parametrize("method", ["auto", "chunked"])
def test_one_channel_is_that_of_s4d(method):
    """With one input and one output, and the parameters of S4D's only channel."""
    channel, net = sequence.s4d(1, state=16, method="sequential"), sequence.s5(1, state=16, method=method)
    params, xs, state, _ = check.problem(channel, 100)
    p = params["params"]
    same = {
        "decay_log_rate": p["decay_log_rate"][0],
        "decay_frequency": p["decay_frequency"][0],
        "decay_log_step": jnp.broadcast_to(p["decay_log_step"], (8,)),
        "input_real": p["input_real"].T,
        "input_imaginary": p["input_imaginary"].T,
        "output_real": p["output_real"],
        "output_imaginary": p["output_imaginary"],
        "skip": p["skip"],
    }
    found, final = net.apply({"params": same}, jnp.asarray(xs), jax.tree.map(lambda x: x[0], state))
    wanted, last = channel.apply(params, jnp.asarray(xs), state)
    check.close(found, np.asarray(wanted), 1e-5)
    check.close(check.as_numbers(final), check.as_numbers(last)[0], 1e-5)


def test_initial_parameters():
    """Eigenvalues of HiPPO's normal part in every block; weights that keep the size of what goes through."""
    net = sequence.s5(64, state=64, blocks=4)
    p = check.numbers(net.init(jax.random.key(0), jnp.zeros((1, 64))))
    legs = sequence.normal_plus_low_rank(16).eigenvalues
    a = -np.exp(p["decay_log_rate"]) + 1j * p["decay_frequency"]
    np.testing.assert_allclose(a, np.tile(sorted(legs[legs.imag > 0], key=lambda x: x.imag), 4), rtol=1e-5)
    assert len(np.unique(p["decay_log_step"])) == 32
    # 2,048 complex numbers of mean square 1 / 64: the mean has a standard error of 2.2 %.
    assert abs(np.mean(abs(p["input"]) ** 2) * 64 - 1) < 0.11
    assert abs(np.mean(abs(p["output"]) ** 2) * 64 - 1) < 0.11


def test_another_rate_of_sampling():
    """The same parameters on every second sample, with twice the step, see the same signal."""
    times = np.arange(0, 400)
    smooth = np.stack([np.sin(0.02 * times), np.cos(0.031 * times)], 1).astype(np.float32)
    net = sequence.s5(2, state=8, initialization="lin", step_min=1e-3, step_max=1e-2)
    params, *_ = check.problem(net, 1)
    params["params"] |= {"skip": jnp.zeros(2)}
    fine, _ = net.apply(params, jnp.asarray(smooth))
    coarse, _ = net.clone(rate=2.0).apply(params, jnp.asarray(smooth[::2]))
    other, _ = net.apply(params, jnp.asarray(smooth[::2]))
    assert np.max(abs(coarse - fine[::2])) < 0.05 * np.max(abs(fine))
    assert np.max(abs(other - fine[::2])) > 0.1 * np.max(abs(fine))


@pytest.mark.parametrize("method", ["sequential", "chunked", "step"])
def test_memories_of_10000_steps_keep_their_digits(method):
    """Factors rounded to one side at every step would be 2e-4 off: decays exp(-1e-4) and inputs of mean 0.3."""
    net = net_of(width=2, state=4, method="auto" if method == "step" else method)
    params, xs, state, reset = check.problem(net, 16_384)
    params["params"] |= {"decay_log_rate": jnp.zeros(2), "decay_log_step": jnp.log(jnp.array([1e-4, 1e-3]))}
    xs = 0.3 + 0.5 * xs
    if method == "step":
        final, ys = scan.scan(lambda state, x: net.apply(params, x, state, method="step")[::-1], state, jnp.asarray(xs))
    else:
        ys, final = jax.jit(net.apply)(params, jnp.asarray(xs), state)
    wanted, last = check.s5(params, xs, state, reset)
    check.close(ys, wanted, 1e-5)
    check.close(check.as_numbers(final), last, 1e-5)


def test_bfloat16_inputs_and_long_memories():
    net = net_of(width=2, state=4)
    params, *_ = check.problem(net, 1)
    # exp(-1e-4) and exp(-1e-3) a step.
    params["params"] |= {"decay_log_rate": jnp.zeros(2), "decay_log_step": jnp.log(jnp.array([1e-4, 1e-3]))}
    check.low_precision(net, check.s5, params)


def test_batches():
    check.batches_are_loops(net_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 1.5}, r"width is 1\.5; expected a whole number, 1 or more"),
        ({"state": 7}, r"state is 7; expected an even number, 2 or more"),
        ({"blocks": 3}, r"blocks is 3; expected a number that divides half of the state, 4"),
        ({"initialization": "zoh"}, r"initialization is zoh; expected one of 'lin'"),
        ({"discretization": "euler"}, r"discretization is euler; expected one of 'zoh'"),
        ({"step_min": 1.0}, r"step_min is 1\.0; expected at most step_max, 0\.1"),
        ({"method": "convolution"}, r"method is convolution; expected one of 'auto', 'sequential'"),
        ({"rate": 0}, r"rate is 0; expected a positive number"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=r"^sequence\.s5: " + message) as error:
        net_of(**options)
    assert "\n" not in str(error.value)
