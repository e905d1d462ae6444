"""The demo's model against scipy, its data, its figure, and (slow) the whole of it."""

import types

import numpy as np
import pytest

from jaxprob.cli import main

statsmodels = pytest.importorskip("statsmodels")


def test_data():
    from jaxprob.cli import _demo

    cases, women = _demo.load_counties()
    assert cases.shape == women.shape == (301,)
    assert (cases.dtype, women.dtype) == (np.int32, np.float32)
    # The means that statsmodels' own description gives.
    assert cases.mean() == pytest.approx(39.857, abs=0.001)
    assert women.mean() == pytest.approx(11288.06, abs=0.01)


def test_log_density_is_that_of_scipy(rng):
    from scipy import stats

    from jaxprob.cli import _demo

    cases, women = _demo.load_counties()
    posterior = _demo.posterior()

    def expected(mu, tau, log_rate):
        return (
            stats.norm(0, 2).logpdf(mu)
            + stats.halfnorm(scale=1).logpdf(tau)
            + stats.norm(mu, tau).logpdf(log_rate).sum()
            + stats.poisson(women.astype(float) / 1000 * np.exp(log_rate)).logpmf(cases).sum()
        )

    # Differences between positions with the same tau do not depend on how tau is mapped to the real line.
    tau = np.float32(0.25)
    values = [
        {"mu": np.float32(mu), "tau": tau, "log_rate": rng.normal(1.2, 0.2, 301).astype(np.float32)}
        for mu in (1.1, 1.4)
    ]
    found = [float(posterior.log_density(posterior.unconstrain(v))) for v in values]
    wanted = [expected(float(v["mu"]), float(tau), v["log_rate"].astype(float)) for v in values]
    assert found[0] - found[1] == pytest.approx(wanted[0] - wanted[1], rel=1e-4)


def test_figure_shows_that_small_counties_move_most(rng):
    from jaxprob.cli import _demo

    cases, women = _demo.load_counties()
    # Gamma-Poisson rates, known in closed form: prior worth 20,000 women at the average rate.
    shape, rate = 70 + cases, 20 + women / 1000
    log_rate = np.log(rng.gamma(shape, 1 / rate, size=(2, 200, 301)))
    figure = _demo.figures(types.SimpleNamespace(draws={"log_rate": log_rate}))["Raw and shrunken rates"]
    raw, mean = (line.get_ydata() for line in figure.axes[0].lines[1:3])
    np.testing.assert_allclose(raw, cases / women * 1000, rtol=1e-5)
    np.testing.assert_allclose(mean, shape / rate, rtol=0.1)
    moved = np.abs(raw - mean)
    assert np.median(moved[women < 3000]) > 3 * np.median(moved[women > 30000])
    figure.canvas.draw()


def test_without_statsmodels_the_extra_is_named(monkeypatch, tmp_path, capsys):
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("statsmodels"):
            raise ModuleNotFoundError("No module named 'statsmodels'")
        return real(name, *rest)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "jaxprob: demo: the data come with statsmodels. Install it with: pip install 'jaxprob[examples]'.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_ends_with_a_clean_diagnosis_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "No problems found in 4 chains of 1,500 draws" in text
    assert text.splitlines()[-1] == "report  runs/demo/report.html"
    page = (tmp_path / "runs/demo/report.html").read_text()
    assert "Raw and shrunken rates" in page
    assert "verdict green" in page
