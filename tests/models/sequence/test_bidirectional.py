"""A bidirectional core by its two directions, each run by hand, part by part where there are resets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.models.sequence import Core
from jaxprob.models.sequence._core import linear_states


class Decay(Core):
    """s_t = a s_{t-1} + x_t with a learned a, y = s."""

    factory = "decay"

    def setup(self):
        self.a = self.param("a", jax.random.uniform, (self.width,))

    def initial_state(self):
        return jnp.zeros(self.width)

    def run(self, xs, state, reset, deterministic):
        return linear_states(self.a[None], xs, state, reset)


def by_hand(xs, a):
    state, ys = 0.0, []
    for x in np.asarray(xs, np.float64):
        state = np.asarray(a, np.float64) * state + x
        ys.append(state)
    return np.stack(ys)


@pytest.mark.parametrize("starts", [(0,), (0, 3), (0, 1, 2, 6)])
@pytest.mark.parametrize("merge", ["sum", "project"])
def test_each_part_is_read_from_both_ends(rng, starts, merge):
    xs = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    net = sequence.bidirectional(Decay(width=3), merge=merge)
    params = jax.jit(net.init)(jax.random.key(0), xs)
    p, parts = params["params"], []
    for begin, end in zip(starts, (*starts[1:], 7), strict=True):
        part = xs[begin:end]
        forward, backward = by_hand(part, p["forward"]["a"]), by_hand(part[::-1], p["backward"]["a"])[::-1]
        if merge == "sum":
            parts.append(forward + backward)
        else:
            parts.append(np.concatenate([forward, backward], -1) @ np.asarray(p["project"]["kernel"]))
    for first in (False, True):
        reset = jnp.zeros(7, bool).at[jnp.array(starts)].set(True).at[0].set(first)
        ys, state = net.apply(params, xs, None, reset)
        np.testing.assert_allclose(ys, np.concatenate(parts), rtol=1e-5, atol=1e-5)
        assert state == ()
    if starts == (0,):
        np.testing.assert_allclose(net.apply(params, xs)[0], np.concatenate(parts), rtol=1e-5, atol=1e-5)


def test_the_directions_have_parameters_of_their_own_also_in_a_stack(rng):
    net = sequence.stack(sequence.bidirectional(Decay(width=4)), depth=3, output=2, pool="mean")
    params = jax.jit(net.init)(jax.random.key(0), jnp.ones((5, 2)))
    core = params["params"]["layer"]["blocks_0"]["core"]
    assert not np.allclose(core["forward"]["a"], core["backward"]["a"])
    ys, state = net.apply(params, jnp.asarray(rng.normal(size=(5, 2)), jnp.float32))
    assert ys.shape == (2,)
    assert jax.tree.leaves(state["blocks"]) == []


def test_the_first_output_depends_on_the_last_input(rng):
    xs = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    net = sequence.bidirectional(Decay(width=2))
    params = jax.jit(net.init)(jax.random.key(0), xs)
    sensitivity = jax.jit(jax.jacobian(lambda xs: net.apply(params, xs)[0]))(xs)
    assert np.all(np.any(sensitivity != 0, (1, 3)))


def test_there_is_no_step_and_no_state():
    net, xs = sequence.bidirectional(Decay(width=2)), jnp.ones((3, 2))
    params = jax.jit(net.init)(jax.random.key(0), xs)
    with pytest.raises(ValueError, match=r"sequence\.bidirectional: step is called; expected a call with the whole"):
        net.apply(params, xs[0], method="step")
    with pytest.raises(ValueError, match=r"state is value \(2,\); expected nothing, that of this core"):
        net.apply(params, xs, jnp.ones(2))


def test_bad_options_are_one_line():
    with pytest.raises(ValueError, match="merge is concat; expected one of 'project', 'sum'"):
        sequence.bidirectional(Decay(width=2), merge="concat")
    with pytest.raises(TypeError, match="expected a sequence core"):
        sequence.bidirectional(None)
