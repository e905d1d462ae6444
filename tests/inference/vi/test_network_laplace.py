"""The Laplace approximation of networks: exact regressions, curvature by differences, Kronecker factors, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference import vi

DELTA = 0.7


def gaussian(outputs, y):
    return -0.5 * jnp.sum((y - outputs) ** 2) / 0.25 - 0.5 * outputs.size * np.log(2 * np.pi * 0.25)


def softmax(outputs, y):
    return jax.nn.log_softmax(outputs)[y]


def network(params, x):
    hidden = jnp.tanh(jnp.dot(x, params["first"]["kernel"], precision="highest") + params["first"]["bias"])
    return jnp.dot(hidden, params["last"]["kernel"], precision="highest") + params["last"]["bias"]


def small(seed=0, number=10):
    rng = np.random.default_rng(seed)
    params = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(2, 3))), "bias": jnp.asarray(rng.normal(size=3))},
        "last": {"kernel": jnp.asarray(rng.normal(size=(3, 3))), "bias": jnp.asarray(rng.normal(size=3))},
    }
    return params, jnp.asarray(rng.normal(size=(number, 2))), jnp.asarray(rng.integers(0, 3, size=number))


def exact_curvature(params, xs, ys):
    """J^T H J by central differences of the outputs, and H = diag(p) - p p^T."""
    vector, structure = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]), jax.tree.structure(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]

    def outputs(vector, x):
        ends = np.cumsum([0] + [int(np.prod(s)) for s in shapes])
        leaves = [vector[a:b].reshape(s) for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)]
        p = jax.tree.unflatten(structure, leaves)
        hidden = np.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
        return hidden @ p["last"]["kernel"] + p["last"]["bias"]

    total = np.zeros((vector.size, vector.size))
    for x in np.asarray(xs):
        steps = 1e-6 * np.eye(vector.size)
        jacobian = np.stack([(outputs(vector + s, x) - outputs(vector - s, x)) / 2e-6 for s in steps], axis=1)
        p = np.exp(outputs(vector, x) - np.log(np.exp(outputs(vector, x)).sum()))
        total += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    return total


def covariance_of(found):
    """The covariance of all uncertain numbers, through `sample`'s root."""
    leaves = [jax.tree.leaves(found.params)[i] for i in found.chosen]
    size = sum(leaf.size for leaf in leaves)
    columns = []
    for e in np.eye(size):
        parts = np.split(e, np.cumsum([leaf.size for leaf in leaves])[:-1])
        moved = found._root([jnp.asarray(p.reshape(leaf.shape)) for p, leaf in zip(parts, leaves, strict=True)])
        columns.append(np.concatenate([np.ravel(m) for m in moved]))
    root = np.stack(columns, axis=1)
    return root @ root.T


@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_a_linear_regression_is_exact(structure, x64):
    rng = np.random.default_rng(1)
    xs, w = rng.normal(size=(20, 3)), np.array([1.0, -1.0, 0.5])
    ys = xs @ w + 0.5 * rng.normal(size=20)
    precision = xs.T @ xs / 0.25 + DELTA * np.eye(3)
    mean = np.linalg.solve(precision, xs.T @ ys / 0.25)

    def apply(params, x):
        return jnp.dot(x, params, precision="highest")

    data = jnp.asarray(xs), jnp.asarray(ys)[:, None]
    found = vi.network_laplace(
        apply, jnp.asarray(mean)[:, None], *data, gaussian, prior_precision=DELTA, structure=structure, batch=7
    )
    np.testing.assert_allclose(covariance_of(found), np.linalg.inv(precision), rtol=1e-8)
    law = stats.multivariate_normal(np.zeros(20), xs @ xs.T / DELTA + 0.25 * np.eye(20))
    np.testing.assert_allclose(found.log_evidence, law.logpdf(ys), rtol=1e-9)
    predicted = found.predict(jnp.asarray(xs[0]))
    np.testing.assert_allclose(predicted.covariance[0, 0], xs[0] @ np.linalg.inv(precision) @ xs[0], rtol=1e-8)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_curvature_is_that_of_finite_differences(batch, x64):
    params, xs, ys = small()
    curvature = exact_curvature(params, xs, ys)
    precision = curvature + DELTA * np.eye(len(curvature))
    options = {"prior_precision": DELTA, "batch": batch}
    full = vi.network_laplace(network, params, xs, ys, softmax, structure="full", **options)
    np.testing.assert_allclose(covariance_of(full), np.linalg.inv(precision), atol=1e-7)
    diagonal = vi.network_laplace(network, params, xs, ys, softmax, structure="diagonal", **options)
    np.testing.assert_allclose(covariance_of(diagonal), np.diag(1 / np.diag(precision)), atol=1e-7)
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    fit = sum(float(softmax(network(params, x), y)) for x, y in zip(xs, ys, strict=True))
    evidence = (
        fit - 0.5 * DELTA * vector @ vector + 0.5 * len(vector) * np.log(DELTA) - 0.5 * np.linalg.slogdet(precision)[1]
    )
    np.testing.assert_allclose(full.log_evidence, evidence, rtol=1e-7)


def test_kronecker_factors_keep_the_trace_and_are_exact_for_one_output_gradient(x64):
    params, xs, ys = small()
    found = vi.network_laplace(network, params, xs, ys, softmax, structure="kronecker", prior_precision=1e-3)
    curvature = exact_curvature(params, xs, ys)
    place = 0
    for leaf, factors in zip(jax.tree.leaves(params), found.curvature, strict=True):
        block = curvature[place : place + leaf.size, place : place + leaf.size]
        values = np.asarray(factors.left[0])[:, None] * np.asarray(factors.right[0]) / float(factors.scale)
        np.testing.assert_allclose(values.sum(), np.trace(block), rtol=1e-6)
        place += leaf.size
    # Of one example with two classes the curvature of a layer is one outer product, which the factors are.
    one = jax.tree.map(lambda a: a[:1], (xs, jnp.minimum(ys, 1)))
    two = {**params, "last": jax.tree.map(lambda a: a[..., :2], params["last"])}
    found = vi.network_laplace(
        network, two, *one, softmax, structure="kronecker", subset="last.kernel", prior_precision=DELTA
    )
    hidden = np.tanh(np.asarray(xs[0]) @ params["first"]["kernel"] + params["first"]["bias"])
    outputs = hidden @ two["last"]["kernel"] + two["last"]["bias"]
    p = np.exp(outputs - np.log(np.exp(outputs).sum()))
    block = np.kron(np.outer(hidden, hidden), np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(covariance_of(found), np.linalg.inv(block + DELTA * np.eye(6)), atol=1e-8)


def test_a_last_layer_is_a_subset(x64):
    params, xs, ys = small()
    found = vi.network_laplace(
        network, params, xs, ys, softmax, structure="full", subset="last.*", prior_precision=DELTA
    )
    curvature = exact_curvature(params, xs, ys)[9:, 9:]
    np.testing.assert_allclose(covariance_of(found), np.linalg.inv(curvature + DELTA * np.eye(12)), atol=1e-7)
    draws = jax.vmap(found.sample)(jax.random.split(jax.random.key(0), 5))
    assert np.ptp(draws["first"]["kernel"], axis=0).max() == 0
    assert np.ptp(draws["last"]["kernel"], axis=0).min() > 0


@pytest.mark.parametrize("structure", ["full", "diagonal", "kronecker"])
def test_draws_have_the_covariance_and_the_dtype(structure):
    params, xs, ys = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype.kind == "f" else a, small())
    found = vi.network_laplace(network, params, xs, ys, softmax, structure=structure, subset="last.*")
    draws = jax.jit(jax.vmap(found.sample))(jax.random.split(jax.random.key(1), 20_000))
    flat = np.concatenate(
        [np.asarray(leaf).reshape(20_000, -1) for leaf in (draws["last"]["bias"], draws["last"]["kernel"])], axis=1
    )
    assert draws["last"]["bias"].dtype == jnp.float32
    covariance = covariance_of(found)
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 20_000)
    # 78 numbers: 5 standard errors fail once in 20,000.
    assert (np.abs(np.cov(flat.T) - covariance) < 5 * error).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "band"}, "structure"),
        ({"subset": "middle.*"}, "without a leaf"),
        ({"batch": 0}, "batch is 0"),
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"ys": jnp.zeros(3, int)}, "one length"),
        ({"apply": lambda p, x: 0.0 * x[0] + p["last"]["bias"][0]}, "outputs of shape"),
    ],
)
def test_bad_input_is_told_in_one_line(options, words):
    params, xs, ys = small()
    given = {"apply": network, "params": params, "xs": xs, "ys": ys, "log_likelihood": softmax, **options}
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        vi.network_laplace(**given)
    assert "\n" not in str(caught.value)
