"""Every mistake gets one line that names what is wrong, what was expected and what to do, before anything compiles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import models
from jaxprob.distributions import Bernoulli, Binomial, Exponential, Flat, Normal, Poisson, Real, Uniform

KEY = jax.random.key(0)


@models.joint
def model(sigma):
    mu = yield "mu", Normal(0.0, 5.0)
    tau = yield "tau", Exponential(1.0)
    yield "twice", models.deterministic(2 * tau)
    yield "y", Normal(jnp.full_like(sigma, mu), tau)


def program():
    return model(np.ones(3))


def posterior():
    return program().condition(y=np.zeros(3))


def run(body):
    return models.joint(body)().sample(KEY)


def yields_twice():
    yield "x", Normal(0.0, 1.0)
    yield "x", Normal(0.0, 1.0)


def yields_no_name():
    yield Normal(0.0, 1.0)


def yields_a_number():
    yield "x", 3.0


def yields_a_program():
    yield "x", Normal(0.0, 1.0)
    yield program()


def yields_an_empty_name():
    yield "", Normal(0.0, 1.0)


def raises():
    yield "x", Normal(0.0, 1.0)
    raise KeyError("oops")


def wrong_parameter():
    yield "x", Normal(0.0, -1.0)


def improper():
    yield "x", Flat(Real())


def discrete():
    x = yield "x", Normal(0.0, 1.0)
    yield "z", Bernoulli(logits=x)
    yield "n", Binomial(np.array([3, 5]), 0.5)


def never_yields():
    return 3


POSITION = {"mu": jnp.zeros(()), "tau": jnp.zeros(())}

CASES = {
    "not a generator": (lambda: models.joint(never_yields), TypeError, "joint: function is never_yields, which never"),
    "missing argument": (lambda: model(), TypeError, "model: the call is missing a required argument: 'sigma'"),
    "unhashable argument": (lambda: model({1, 2}), TypeError, "model: argument 'sigma' is an object of type set"),
    "duplicate": (lambda: run(yields_twice), ValueError, "yields_twice: name 'x' is yielded twice"),
    "no name": (
        lambda: run(yields_no_name),
        TypeError,
        "yields_no_name: what is yielded first is an object of type No",
    ),
    "number": (lambda: run(yields_a_number), TypeError, "what is yielded as 'x' is 3.0;.*models.deterministic"),
    "program": (lambda: run(yields_a_program), TypeError, "what is yielded after 'x'.*Program.*`yield from`"),
    "empty name": (lambda: run(yields_an_empty_name), ValueError, "the name yielded first is empty"),
    "raises": (lambda: run(raises), models.ModelError, r"raises: the model after 'x' is raising KeyError \('oops'\)"),
    "parameter": (lambda: run(wrong_parameter), models.ModelError, "before its first site.*Normal: scale is -1.0"),
    "improper": (lambda: run(improper), ValueError, "sample: site 'x' .*Flat.*substitute"),
    "unknown name": (lambda: program().condition(z=1.0), ValueError, r"z is no name in model; .*\['mu', 'tau', 'y'\]"),
    "deterministic": (lambda: program().condition(twice=1.0), ValueError, "twice is deterministic in model"),
    "twice given": (lambda: posterior().condition(y=np.zeros(3)), ValueError, "y is observed already"),
    "fixed": (lambda: program().substitute(mu=0.0).condition(mu=0.0), ValueError, "mu is fixed already"),
    "done": (lambda: program().do(mu=0.0).substitute(mu=0.0), ValueError, "mu is set by do already"),
    "data shape": (
        lambda: program().condition(y=np.zeros(4)),
        ValueError,
        r"y is of shape \(4,\); expected the shape \(3,",
    ),
    "do shape": (lambda: program().do(mu=np.zeros(4)), ValueError, r"do: mu is of shape \(4,\)"),
    "data type": (lambda: program().condition(y="abc"), TypeError, "condition: y is 'abc'; expected an array"),
    "missing values": (
        lambda: program().condition(y=[0.0, np.nan, 1.0]),
        ValueError,
        r"y is nan at index \(1,\); expected no missing values, .*site of their own",
    ),
    "outside": (lambda: program().condition(tau=-1.0), ValueError, r"tau is -1.*support of its site, Exponential"),
    "outside constant edges": (
        lambda: models.joint(lambda: (yield "x", Uniform(0.0, 2.0)))().condition(x=3.0),
        ValueError,
        "x is 3.*Uniform",
    ),
    "outside edges from data": (
        lambda: models.joint(discrete)().condition(n=[3, 6]),
        ValueError,
        r"n is 6 at index \(1,\).*Binomial",
    ),
    "not whole": (
        lambda: models.joint(lambda: (yield "x", Poisson(jnp.ones(2))))().condition(x=[1.0, 0.5]),
        ValueError,
        r"x is 0.5 at index \(1,\).*Poisson",
    ),
    "discrete position": (
        lambda: models.joint(discrete)().condition().initial(KEY),
        ValueError,
        "initial: site 'z' is lat",
    ),
    "discrete density": (
        lambda: models.joint(discrete)().condition().log_density({"x": jnp.zeros(())}),
        ValueError,
        r"log_density: site 'z' is latent and discrete \(Bernoulli\).*marginalize='z'.*substitute",
    ),
    "position lacks": (lambda: posterior().log_density({"mu": 0.0}), ValueError, "position is without 'tau'"),
    "position has": (lambda: posterior().log_density({**POSITION, "w": 1.0}), ValueError, "with unknown name 'w'"),
    "position shape": (
        lambda: posterior().log_density({**POSITION, "mu": jnp.zeros(2)}),
        ValueError,
        r"position\['mu'\] is of shape \(2,\); expected the shape \(\)",
    ),
    "values lack": (lambda: program().log_prob({"mu": 0.0}), ValueError, "log_prob: values is without 'tau'"),
    "values have": (
        lambda: program().log_prob({"mu": 0.0, "tau": 1.0, "y": jnp.zeros(3), "w": 1.0}),
        ValueError,
        "values is with unknown name 'w'",
    ),
    "draws lack": (lambda: posterior().predict(KEY, {"mu": jnp.zeros(5)}), ValueError, "draws is without 'tau'"),
    "draws differ": (
        lambda: posterior().predict(KEY, {"mu": jnp.zeros(5), "tau": jnp.ones(4)}),
        ValueError,
        r"predict: tau is of shape \(4,\); expected \(5,\)",
    ),
    "key": (lambda: program().sample(3), TypeError, r"sample: key is 3; .*jax.random.key"),
}


@pytest.mark.parametrize("name", CASES)
def test_error_line(name):
    call, kind, pattern = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert re.match(r"^\w+: .+; expected .+\.$", text), text
    assert re.search(pattern, text), text


def test_the_models_own_exception_is_kept():
    with pytest.raises(models.ModelError) as caught:
        run(raises)
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_under_jit_are_the_same():
    with pytest.raises(ValueError, match="position is without 'tau'"):
        jax.jit(posterior().log_density)({"mu": 0.0})
    with pytest.raises(models.ModelError, match="TracerBoolConversionError") as caught:
        jax.jit(models.joint(branches)().log_prob)({"x": 0.0})
    assert caught.value.__cause__ is not None


def branches():
    x = yield "x", Normal(0.0, 1.0)
    if x > 0:
        yield "y", Normal(0.0, 1.0)


def test_data_outside_edges_that_are_latent_have_no_density():
    @models.joint
    def edges():
        top = yield "top", Exponential(1.0)
        yield "x", Uniform(0.0, top)

    conditioned = edges().condition(x=2.0)
    assert conditioned.log_density({"top": jnp.log(1.0)}) == -jnp.inf
    assert np.isfinite(conditioned.log_density({"top": jnp.log(3.0)}))


def test_values_are_not_checked_under_tracing():
    # Under jit there are no numbers to look at: a value outside the support has no density, and there is no error.
    wait = models.joint(lambda: (yield "wait", Exponential(1.0)))()
    density = jax.jit(lambda value: wait.condition(wait=value).log_density({}))
    assert density(-1.0) == -jnp.inf
    assert density(1.0) == -1.0
