"""The front door: what it accepts, what it says, what it keeps."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import core, models, runtime
from jaxprob.distributions import HalfCauchy, Normal
from jaxprob.inference import mcmc, vi
from tests.runtime import _targets

ROOT = Path(__file__).resolve().parents[2]
KEY = jax.random.key(0)


@models.joint
def schools(sigma):
    mu = yield "mu", Normal(0.0, 5.0)
    tau = yield "tau", HalfCauchy(5.0)
    offset = yield "offset", Normal(jnp.zeros_like(sigma), 1.0)
    yield "y", Normal(mu + tau * offset, sigma)


SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
Y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "schools"
    posterior = schools(SIGMA).condition(y=Y)
    return jaxprob.sample(posterior, KEY, chains=4, warmup=400, draws=400, devices=2, out=folder)


def cheap(**changes):
    target, initial = _targets.elementwise(2)
    options = {"initial": initial, "chains": 2, "draws": 5, "algorithm": _targets.random_walk(target), "devices": 1}
    return jaxprob.sample(target, KEY, **{**options, **changes})


def test_a_model_is_sampled_summarised_and_diagnosed(finished):
    assert finished.status == "finished"
    assert {name: x.shape for name, x in finished.draws.items()} == {
        "mu": (4, 400),
        "tau": (4, 400),
        "offset": (4, 400, 8),
    }
    assert (finished.draws["tau"] > 0).all()
    assert {"acceptance_rate", "num_steps", "diverging", "energy", "log_density", "tree_depth", "step_size"} <= set(
        finished.stats
    )
    # The reference posterior's means are 4.41 (sd 3.31) and 3.60 (sd 3.20); an effective sample of 250 has 5 standard
    # errors of 0.32 sd: a false alarm in a million.
    assert finished.summary().to_dict()["mu"]["ess_bulk"] > 250
    assert abs(finished.draws["mu"].mean() - 4.41) < 0.32 * 3.31
    assert abs(finished.draws["tau"].mean() - 3.60) < 0.32 * 3.20
    assert "mu" in str(finished.summary())
    assert str(finished.diagnose())
    assert "4 chains x 400 draws, nuts(metric='dense'), finished" in repr(finished)


def test_a_run_directory_holds_it_all(finished):
    meta = json.loads((finished.path / "meta.json").read_text())
    assert meta["status"] == "finished"
    assert meta["mesh"] == {"chains": 2, "data": 1, "device": "cpu", "processes": 1}
    assert [leaf["name"] for leaf in meta["leaves"]] == ["mu", "offset", "tau"]
    assert {"jaxprob", "jax", "python"} <= set(meta["versions"])
    for name in ("summary.json", "summary.txt", "diagnosis.txt"):
        assert (finished.path / name).stat().st_size > 0
    loaded = runtime.load(finished.path)
    for name, value in finished.draws.items():
        np.testing.assert_array_equal(loaded.draws[name], value)
    np.testing.assert_array_equal(loaded.stats["energy"], finished.stats["energy"])
    assert str(loaded.summary()) == str(finished.summary())


def test_a_datatree_has_the_groups_arviz_looks_for(finished):
    xarray = pytest.importorskip("xarray")
    tree = finished.to_datatree()
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "observed_data",
        "posterior_predictive",
        "log_likelihood",
    }
    assert tree["posterior"]["offset"].dims == ("chain", "draw", "offset_dim_0")
    assert {"lp", "n_steps", "diverging", "energy"} <= set(tree["sample_stats"].data_vars)
    np.testing.assert_array_equal(tree["observed_data"]["y"].values, np.asarray(Y))
    stored = xarray.open_datatree(finished.path / "draws.zarr", engine="zarr", consolidated=False)
    np.testing.assert_array_equal(stored["posterior/mu"].values, finished.draws["mu"])
    # Pointwise log likelihood against scipy.
    from scipy.stats import norm

    mean = finished.draws["mu"][..., None] + finished.draws["tau"][..., None] * finished.draws["offset"]
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"].values, norm.logpdf(np.asarray(Y), mean, np.asarray(SIGMA)), rtol=2e-5, atol=1e-5
    )


def test_the_log_density_is_traced_at_most_twice():
    traces = []

    def log_density(x):
        traces.append(1)
        return -0.5 * jnp.sum(x**2)

    jaxprob.sample(log_density, KEY, initial=jnp.zeros(3), chains=2, warmup=50, draws=50, devices=2)
    assert len(traces) <= 2
    jaxprob.sample(log_density, KEY, initial=jnp.zeros(3), chains=2, warmup=50, draws=50, devices=2)
    assert len(traces) <= 2


def test_another_number_of_draws_compiles_nothing_new():
    from jaxprob.runtime import _program

    target, initial = _targets.elementwise(2)
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "devices": 1}
    jaxprob.sample(target, KEY, draws=2000, **options)
    before = _program.compiled(_program._chunk_sharded, "cpu")._cache_size()
    jaxprob.sample(target, KEY, draws=3000, **options)
    assert _program.compiled(_program._chunk_sharded, "cpu")._cache_size() == before


def test_positions_are_any_pytree():
    def log_density(position):
        return -0.5 * jnp.sum(position["a"] ** 2) - 0.5 * position["b"][0] ** 2 - position["b"][1] ** 4

    start = {"a": jnp.zeros((2, 3)), "b": (jnp.float32(0.0), jnp.float32(0.5))}
    result = jaxprob.sample(log_density, KEY, initial=start, chains=2, warmup=20, draws=10, devices=1)
    assert jax.tree.structure(result.draws) == jax.tree.structure(start)
    assert result.draws["a"].shape == (2, 10, 2, 3)


@core.pytree
class Network:
    """Parameters that can be called, as networks are in some libraries."""

    weight: jax.Array

    def __call__(self, x):
        raise AssertionError("a position is no function of a key")


def test_a_position_that_can_be_called_is_a_position():
    start = Network(jnp.ones(2))

    def log_density(net):
        return -0.5 * jnp.sum(net.weight**2)

    result = jaxprob.sample(log_density, KEY, initial=start, chains=2, warmup=20, draws=5, devices=1)
    assert isinstance(result.draws, Network)
    assert result.draws.weight.shape == (2, 5, 2)
    found = vi.fit(log_density, KEY, vi.mean_field(), initial=start, max_steps=4, window=2)
    assert isinstance(found.guide.sample(KEY), Network)


@pytest.mark.parametrize("thin", [1, 2])
def test_chains_that_do_not_wait_make_the_same_draws(thin, tmp_path):
    posterior = schools(SIGMA).condition(y=Y)
    options = {"chains": 4, "warmup": 60, "draws": 40, "thin": thin, "devices": 2}
    one = jaxprob.sample(posterior, KEY, **options)
    two = jaxprob.sample(posterior, KEY, **options, interleave=True, out=tmp_path / "run")
    for name in one.draws:
        np.testing.assert_allclose(two.draws[name], one.draws[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(two.stats["num_steps"], one.stats["num_steps"])
    more = jaxprob.sample(
        posterior, KEY, **{**options, "draws": 50}, interleave=True, out=tmp_path / "run", resume=True
    )
    np.testing.assert_array_equal(more.draws["mu"][:, :40], two.draws["mu"])
    with pytest.raises(ValueError, match="sample: interleave is True with hmc"):
        jaxprob.sample(posterior, KEY, algorithm=mcmc.hmc, interleave=True)


def test_it_says_what_it_picked():
    small, large = (lambda q: -0.5 * jnp.sum(q**2) for _ in range(2))
    result = jaxprob.sample(small, KEY, initial=jnp.zeros(3), draws=4, devices=1)
    assert (result.meta["algorithm"], result.meta["warmup"]) == ("nuts(metric='dense')", 400)
    result = jaxprob.sample(large, KEY, initial=jnp.zeros(300), chains=2, draws=4, devices=1)
    assert (result.meta["algorithm"], result.meta["warmup"]) == ("nuts(metric='diagonal')", 600)


def test_discrete_and_mixed_positions():
    """A label and a number by blocks: P(label = 1) is 0.7, and the number given the label is N(label, 1)."""

    def log_density(q):
        log_prior = jnp.log(jnp.array([0.3, 0.7]))[q["label"]]
        return log_prior - 0.5 * (q["x"] - q["label"].astype(jnp.float32)) ** 2

    blocks = {
        "label": functools.partial(mcmc.discrete_gibbs, num_categories=2),
        "x": functools.partial(mcmc.hmc, step_size=0.5, num_integration_steps=3),
    }
    start = {"label": jnp.int32(0), "x": jnp.float32(0)}
    result = jaxprob.sample(
        log_density, KEY, initial=start, algorithm=mcmc.gibbs(log_density, blocks), chains=4, draws=2000, devices=2
    )
    assert result.draws["label"].dtype == np.int32
    assert abs(result.draws["label"].mean() - 0.7) < 0.05
    assert abs((result.draws["x"] - result.draws["label"]).mean()) < 0.1
    assert "x.acceptance_rate" in result.stats or "acceptance_rate" in result.stats
    assert "x" in result.summary().to_dict()


def test_names_to_keep():
    posterior = schools(SIGMA).condition(y=Y)
    options = {"chains": 2, "warmup": 10, "draws": 5, "devices": 1}
    assert set(jaxprob.sample(posterior, KEY, keep=["mu"], **options).draws) == {"mu"}
    assert jaxprob.sample(posterior, KEY, keep=[], **options).draws == {}
    with pytest.raises(ValueError, match=r"sample: keep is 'nu'; expected names among \['mu', 'offset', 'tau'\]"):
        jaxprob.sample(posterior, KEY, keep=["nu"], **options)


def test_constrained_starts():
    posterior = schools(SIGMA).condition(y=Y)
    start = {"mu": 1.0, "tau": 2.0, "offset": np.zeros(8)}
    kernel = mcmc.hmc(posterior.log_density, step_size=1e-6, inverse_mass_matrix=jnp.ones(10), num_integration_steps=1)
    draws = jaxprob.sample(posterior, KEY, initial=start, algorithm=kernel, chains=2, draws=1, devices=1).draws
    np.testing.assert_allclose(draws["tau"][:, 0], 2.0, rtol=1e-4)


def test_an_algorithm_of_blackjax_runs_unchanged():
    blackjax = pytest.importorskip("blackjax")

    def log_density(x):
        return -0.5 * jnp.sum((x / jnp.array([1.0, 2.0])) ** 2)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        kernel = blackjax.nuts(log_density, step_size=0.8, inverse_mass_matrix=jnp.array([1.0, 4.0]))
        result = jaxprob.sample(
            log_density, KEY, initial=jnp.zeros(2), algorithm=kernel, chains=4, draws=1000, devices=2
        )
    assert {"diverging", "num_steps", "energy"} <= set(result.stats)
    # 4,000 draws with an effective sample above 1,000: 5 standard errors of the sd are 11 % (false alarm 1e-6).
    np.testing.assert_allclose(result.draws.std((0, 1)), [1.0, 2.0], rtol=0.11)


def test_a_rule_ends_a_run():
    result = cheap(draws=100_000, until=runtime.wall_clock(0.2))
    assert result.status == "finished"
    assert result.meta["ended"] == "until: wall clock 0.2 s"
    assert 0 < result.draws.shape[1] < 100_000
    result = cheap(draws=100_000, chains=4, until=runtime.effective_sample_size(100) & runtime.r_hat(1.2))
    assert 100 < result.draws.shape[1] < 100_000


def test_no_draws_and_one_draw():
    assert cheap(draws=0).draws.shape == (2, 0, 2)
    assert cheap(draws=1, chains=1).draws.shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"chains": 0}, ValueError, "sample: chains is 0; expected an integer of at least 1."),
        ({"draws": -1}, ValueError, "sample: draws is -1; expected an integer of at least 0."),
        ({"draws": 2.5}, ValueError, "sample: draws is 2.5; expected an integer"),
        ({"thin": 0}, ValueError, "sample: thin is 0; expected"),
        ({"warmup": -1}, ValueError, "sample: warmup is -1; expected"),
        ({"algorithm": "nuts"}, TypeError, "sample: algorithm is 'nuts'; expected a factory such as mcmc.nuts"),
        ({"executor": "threads"}, ValueError, "sample: executor is 'threads'; expected one of"),
        ({"initial": None}, ValueError, "sample: initial is None; expected a position to start from."),
        ({"initial": {}}, ValueError, r"sample: initial is .*; expected a pytree with at least one array"),
        ({"resume": True}, ValueError, "sample: out is None; expected the folder of the run to resume"),
        ({"devices": 3}, ValueError, "sample: devices is 3; expected a number that divides the 2 chains"),
    ],
)
def test_bad_input_is_one_line(change, error, said):
    with pytest.raises(error, match=said) as caught:
        cheap(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [3, "model", None])
def test_what_cannot_be_sampled(target):
    with pytest.raises(TypeError, match="sample: posterior is .*; expected a posterior"):
        jaxprob.sample(target, KEY)
    with pytest.raises(TypeError, match="sample: posterior is a program whose data are not given yet"):
        jaxprob.sample(schools(SIGMA), KEY)
    with pytest.raises(TypeError, match=r"sample: key is 0; expected one random key\. Make one with jax\.random\.key"):
        jaxprob.sample(schools(SIGMA).condition(y=Y), 0)


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf, jnp.inf])
def test_a_start_without_a_finite_density_writes_nothing(tmp_path, bad):
    def log_density(x):
        return jnp.where(x[0] > 10, 0.0, bad) - 0.5 * jnp.sum(x**2)

    with pytest.raises(ValueError, match=r"^sample: initial is a position with log density .*; expected a finite"):
        jaxprob.sample(log_density, KEY, initial=jnp.zeros(2), chains=2, draws=5, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_not_finite_is_named(tmp_path):
    def log_density(x):
        return -0.5 * jnp.sum(x["a"] ** 2) - jnp.sum(x["b"] ** 2)

    start = {"a": jnp.zeros(2), "b": jnp.array([0.0, jnp.nan])}
    with pytest.raises(ValueError, match=r"^sample: initial, 'b', is nan; expected finite numbers"):
        jaxprob.sample(log_density, KEY, initial=start, chains=2, draws=5, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"gradient with respect to 'a'"):
        jaxprob.sample(lambda x: -jnp.sum(jnp.sqrt(jnp.abs(x["a"]))), KEY, initial=start | {"b": jnp.zeros(2)}, draws=5)
    assert not (tmp_path / "run").exists()


def test_a_density_of_a_wrong_shape_or_that_raises_writes_nothing(tmp_path):
    with pytest.raises(
        (ValueError, TypeError), match=r"log_density: its value is float32 of shape \(3,\); expected one"
    ):
        jaxprob.sample(lambda x: -(x**2), KEY, initial=jnp.zeros(3), chains=2, draws=5, out=tmp_path / "run")

    def broken(x):
        raise ZeroDivisionError("in the model")

    with pytest.raises(ZeroDivisionError, match="in the model"):
        jaxprob.sample(broken, KEY, initial=jnp.zeros(3), chains=2, draws=5, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken(tmp_path):
    cheap(out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"sample: out is .*, which holds a run; expected a new or empty folder"):
        cheap(out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="which exists and is not a run"):
        cheap(out=tmp_path / "other", resume=True)
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["thesis.tex"]


_HOLD = """
import sys, time
from pathlib import Path
from jaxprob.runtime._directory import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_which_another_process_writes(tmp_path):
    before = cheap(out=tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            ValueError, match=rf"in which process {holder.pid} on .* is writing; expected a folder of its own"
        ):
            cheap(out=tmp_path / "run", resume=True, draws=10)
    finally:
        holder.kill()
        holder.wait()
    assert cheap(out=tmp_path / "run", resume=True, draws=10).draws.shape == (2, 10, 2)
    np.testing.assert_array_equal(runtime.load(tmp_path / "run").draws["value"][:, :5], before.draws)


def test_an_error_during_the_run_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprob.runtime._loop.SECONDS_PER_CHUNK", 0.01)

    class Breaks:
        start = phase = finish = lambda self, *_: None

        def update(self, status):
            if status["step"] > 50:
                raise RuntimeError("out of patience")

        def close(self):
            pass

    whole = cheap(draws=200)
    with pytest.raises(RuntimeError, match="out of patience"):
        cheap(draws=200, out=tmp_path / "run", progress=Breaks(), checkpoint_every=0)
    assert json.loads((tmp_path / "run/meta.json").read_text())["status"] == "failed"
    kept = runtime.load(tmp_path / "run").draws["value"]
    assert kept.shape[1] > 0
    np.testing.assert_array_equal(kept, whole.draws[:, : kept.shape[1]])
    resumed = cheap(draws=200, out=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(resumed.draws, whole.draws)


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"load: path is .* which has no meta\.json; expected the directory of a run"):
        runtime.load(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 99, "versions": {"jaxprob": "9.0"}}')
    with pytest.raises(ValueError, match=r"of format 99; expected .* written by jaxprob 9\.0"):
        runtime.load(tmp_path)


def test_x64_runs_in_x64(x64):
    def log_density(x):
        return -0.5 * jnp.sum(x**2)

    result = jaxprob.sample(log_density, KEY, initial=jnp.zeros(2), chains=2, warmup=20, draws=5, devices=1)
    assert result.draws.dtype == np.float64
    result = jaxprob.sample(log_density, KEY, initial=np.zeros(2, np.float32), chains=2, warmup=20, draws=5, devices=1)
    assert result.draws.dtype == np.float32


def test_options_of_a_kernel_go_by_partial():
    target, initial = _targets.elementwise(2)
    factory = functools.partial(mcmc.nuts, max_tree_depth=2)
    result = jaxprob.sample(target, KEY, initial=initial, algorithm=factory, chains=2, warmup=20, draws=20, devices=1)
    assert result.stats["tree_depth"].max() <= 2
    assert result.meta["algorithm"] == "nuts(max_tree_depth=2, metric='dense')"
    assert "the largest tree depth, 2." in str(result.diagnose())


def test_options_of_the_warmup_go_by_partial():
    target, initial = _targets.elementwise(2)
    options = {"initial": initial, "chains": 2, "warmup": 200, "draws": 100, "devices": 1}
    factory = functools.partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.97, metric="dense", max_tree_depth=5)
    result = jaxprob.sample(target, KEY, algorithm=factory, **options)
    assert result.meta["algorithm"] == "nuts(max_tree_depth=5, metric='dense', target_acceptance=0.97)"
    assert result.meta["aims"] == {"target_acceptance": 0.97, "max_tree_depth": 5}
    usual = jaxprob.sample(target, KEY, **options)
    assert result.stats["step_size"][0, 0] < 0.7 * usual.stats["step_size"][0, 0]
    with pytest.raises(ValueError, match=r"sample: algorithm is nuts\(.*num_steps=3\)"):
        jaxprob.sample(target, KEY, algorithm=functools.partial(mcmc.warmup, mcmc.nuts, num_steps=3), **options)
    with pytest.raises(ValueError, match="options that are numbers or strings"):
        jaxprob.sample(target, KEY, algorithm=functools.partial(mcmc.nuts, tree_depth_limit=np.ones(2)), **options)
    with pytest.raises(ValueError, match="which fixes step_size; expected a factory whose step size and metric are"):
        jaxprob.sample(target, KEY, algorithm=functools.partial(mcmc.nuts, step_size=0.1), **options)


def test_legacy_keys_are_accepted():
    target, _ = _targets.elementwise(2)
    options = {"initial": jnp.zeros(2), "algorithm": _targets.random_walk(target), "draws": 5, "devices": 1}
    a = jaxprob.sample(target, jax.random.PRNGKey(3), **options)
    b = jaxprob.sample(target, jax.random.key(3), **options)
    np.testing.assert_array_equal(a.draws, b.draws)
    assert core.is_key(jax.random.key(3))
