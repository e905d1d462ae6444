"""Masked networks: what each output sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import nn

from jaxprob.distributions import flows
from tests.distributions.flows._ordered import perturbed


def network(size, hidden, context_width=0, outputs=2):
    def make():
        options = {"context_width": context_width, "activation": nn.softplus, "last_scale": 1.0}
        return perturbed(flows.MaskedPerceptron.init(jax.random.key(0), size, hidden, outputs, **options), 1)

    return jax.jit(make)()


@pytest.mark.parametrize(
    ("size", "hidden", "context_width"), [(5, (16, 16), 0), (4, (9,), 3), (3, (), 2), (1, (8,), 2)]
)
def test_outputs_see_the_numbers_before_and_the_context(size, hidden, context_width):
    jacobian = jax.jit(jax.jacfwd(network(size, hidden, context_width)))(jnp.linspace(-1, 1, size + context_width))
    jacobian = np.asarray(jacobian)
    assert jacobian.shape == (size, 2, size + context_width)
    before = np.arange(size)[:, None] > np.arange(size)[None, :]
    seen = np.concatenate([before, np.ones((size, context_width), bool)], axis=1)
    # Softplus has no zero slope: what is seen counts, and what is not does not at all.
    for output in range(2):
        np.testing.assert_array_equal(jacobian[:, output] != 0, seen)


def test_fewer_units_than_numbers_still_see_nothing_ahead():
    jacobian = np.asarray(jax.jit(jax.jacfwd(network(6, (2, 3))))(jnp.ones(6)))
    assert not np.triu(np.abs(jacobian).sum(axis=1)).any()
    assert (np.abs(jacobian).sum(axis=(1, 2))[1:] > 0).any()


def test_the_first_output_is_a_constant_without_a_context():
    made = network(1, (8,))
    np.testing.assert_array_equal(made(jnp.array([3.0])), made(jnp.array([-1.0])))


def test_it_starts_at_zero_with_the_dtype_asked_for():
    made = flows.MaskedPerceptron.init(jax.random.key(0), 3, (8,), 2, dtype=jnp.bfloat16)
    outputs = made(jnp.ones((4, 3), jnp.bfloat16))
    assert outputs.shape == (4, 3, 2)
    assert outputs.dtype == jnp.bfloat16
    assert not outputs.any()


def test_weights_have_the_variance_of_what_the_mask_lets_through():
    made = flows.MaskedPerceptron.init(jax.random.key(2), 2, (2000,), 1, last_scale=1.0, activation=lambda x: x)
    # One input reaches each unit, and 2,000 units the second output: z-scores of variances of 2,000 normal numbers, of
    # which 1 in 10,000 fails by chance.
    for weights, variance in ((made.weights[0][0], 1.0), (made.weights[1][:, 1], 1 / 2000)):
        assert abs(np.var(np.asarray(weights)) / variance - 1) < 3.9 * np.sqrt(2 / 2000)
