import builtins
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxprob.runtime import _figures, _report

write = runpy.run_path(str(Path(__file__).with_name("_fake_run.py")))["write"]
DRAWS = 200  # the same almost everywhere, since the summary is compiled anew for each shape
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects text, attributes and rows of tables; fails on a tag that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.texts, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def row(self, first):
        return next(row for row in self.rows if row[0] == first)


def page_of(run, **options):
    path = _report.report(run, **options)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    run = write(tmp_path_factory.mktemp("runs") / "good", draws=DRAWS)
    return run, page_of(run)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    run = write(tmp_path_factory.mktemp("runs") / "bad", bad=True, chains=12, draws=DRAWS, status="stopped")
    return run, page_of(run)


def test_the_verdict_comes_first(good, bad):
    for _, page in (good, bad):
        classes = [value for tag, name, value in page.attributes if name == "class" and "verdict" in value]
        assert len(classes) == 1
        assert page.text.index("draws") < page.text.index("Summary")
    assert ("div", "class", "verdict green") in good[1].attributes
    assert "No problem found" in good[1].text
    assert ("div", "class", "verdict red") in bad[1].attributes
    assert "not finished" in bad[1].text
    assert "divergent" in bad[1].text


def test_nothing_comes_from_elsewhere(good, bad):
    for run, page in (good, bad):
        assert "script" not in page.tags
        assert "link" not in page.tags
        for _, name, value in page.attributes:
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#"))
        assert not re.search(r"url\(|@import|https?://", (run / "report.html").read_text())
        anchors = {value[1:] for _, name, value in page.attributes if name == "href"}
        assert anchors <= {value for _, name, value in page.attributes if name == "id"}
        assert len(anchors) == 5


def test_the_numbers_of_the_table_are_those_of_the_draws(good):
    import tensorstore

    run, page = good
    store = {"driver": "file", "path": str(run / "draws.zarr/posterior/mu")}
    mu = np.asarray(tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result(), np.float64)
    row = page.row("mu")
    assert float(row[1]) == pytest.approx(mu.mean(), abs=0.006)
    assert float(row[2]) == pytest.approx(mu.std(), abs=0.006)
    assert float(row[3]) == pytest.approx(np.quantile(mu, 0.055), abs=0.02)
    assert 0.99 < float(row[7]) < 1.01
    # A long variable shows its worst elements and folds the others away.
    names = [row[0] for row in page.rows]
    assert sum(name.startswith("theta[") for name in names) == 3 + 12
    assert any(name.startswith("9 more of theta") for name in names)


def test_figures_and_facts(good, bad):
    alternatives = {value for tag, name, value in good[1].attributes if tag == "img" and name == "alt"}
    assert alternatives == {"density, trace and ranks", "pairs", "energy", "posterior predictive check"}
    assert good[1].row("algorithm")[1] == "nuts"
    assert good[1].row("jax")[1] == "0.10.2"
    assert good[1].row("sampling")[1] == "1.8 s"
    assert good[1].row("run directory")[1] == str(good[0])
    assert good[1].row("chain")[1:3] == ["acceptance rate", "divergences"]
    assert good[1].row("all 4")[2] == "0"
    assert "There were no divergent transitions" in good[1].text
    # 3 % of 12 x 200 draws diverge; eight chains have a row, and then all.
    assert bad[1].row("all 12")[2] == "72"
    assert len([row for row in bad[1].rows if row[0].isdigit()]) == 8
    assert "the 72 divergent transitions in red" in bad[1].text
    assert "Of 12 chains, the 8 that differ most" in bad[1].text


@pytest.fixture
def blank(monkeypatch):
    """Draws nothing, which is most of the work of a report; gives what the figures were asked to show."""
    from matplotlib.figure import Figure

    asked = {}
    for name in ("mixing", "pairs", "energy", "predictive"):

        def draw(*values, name=name):
            asked[name] = values
            return Figure(figsize=(1, 1))

        monkeypatch.setattr(_figures, name, draw)
    return asked


def test_figures_of_the_caller_are_kept_for_later_reports(tmp_path, blank):
    from matplotlib.figure import Figure

    run = write(tmp_path / "a <b> & c", draws=DRAWS, predictive=False)
    page = page_of(run, figures={"Rates/<raw>": Figure(figsize=(2, 1))})
    assert "a <b> & c" in page.text
    assert "Rates__raw_" in page.text
    assert "Posterior predictive check" not in page.text
    again = page_of(run)
    assert "Rates__raw_" in again.text
    assert not list(run.glob(".*partial"))


def test_a_big_run_is_thinned(tmp_path, monkeypatch, blank):
    run = write(tmp_path / "run", draws=DRAWS, bad=True, predictive=False)
    monkeypatch.setattr(_report, "_VALUES", 400)  # every second of 4 x 200 values of a quantity is read
    monkeypatch.setattr(_report, "_DRAWS", 40)
    page_of(run)
    traces, marks, steps = blank["mixing"]
    assert {x.shape for x in traces.values()} == {(4, 34)} == {marks.shape}
    assert steps == 6  # between two draws shown
    pairs, marks = blank["pairs"]
    assert {x.shape for x in pairs.values()} == {(4, 100)} == {marks.shape}
    # The 24 divergences lie in runs; thinning loses no block that has one.
    assert marks.sum() >= 12


def test_what_cannot_be_reported(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected the directory of a run"):
        _report.report(tmp_path)
    run = write(tmp_path / "young", draws=3, predictive=False)
    with pytest.raises(ValueError, match="3 draws; expected at least 4 draws"):
        _report.report(run)
    assert not (run / "report.html").exists()
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"report: figures need matplotlib.*pip install 'jaxprob\[plots\]'"):
        _report.report(run)


def test_ranks_count_what_is_below(rng):
    for values in (rng.normal(size=(3, 40)), rng.integers(0, 5, size=(3, 40))):
        x = values.ravel()
        below, equal = (x[:, None] > x).sum(1), (x[:, None] == x).sum(1)
        np.testing.assert_array_equal(_figures._ranks(values).ravel(), below + (equal + 1) / 2)


def test_density_is_that_of_the_draws(rng):
    x, y = _figures._density(rng.normal(3, 2, size=200_000))
    normal = np.exp(-0.5 * ((x - 3) / 2) ** 2) / (2 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(y, normal, atol=0.005)  # the mode is at 0.2
    assert np.sum(y) * (x[1] - x[0]) == pytest.approx(1, abs=0.01)
    for odd in (np.ones(50), np.array([np.nan, 1.0, 2.0]), np.array([])):
        x, y = _figures._density(odd)
        assert np.isfinite(x).all()
        assert np.isfinite(y).all()


def test_the_chain_that_differs_is_drawn(rng):
    values = rng.normal(size=(20, 100))
    values[13] += 3
    assert 13 in _figures._furthest(np.stack([_figures._ranks(values)]))


def test_constant_missing_and_whole_numbers_are_drawn(rng):
    with _figures.style():
        _figures.mixing({"flat": np.ones((2, 30)), "count": rng.poisson(3, (2, 30))})
        _figures.pairs({"flat": np.ones((2, 30)), "x": rng.normal(size=(2, 30))})
        _figures.predictive(rng.poisson(3, 400), rng.poisson(3, (50, 400)))
        _figures.predictive(np.array([1.0]), rng.normal(size=(50, 1)))
        _figures.energy(np.ones((2, 30)), np.array([np.nan, np.nan]))


def test_quantities_are_chosen_from_several_variables():
    def quantity(name, ess, r_hat=1.0):
        values = {"r_hat": r_hat, "ess_bulk": ess, "ess_tail": ess}
        return _report._Quantity(name, name.partition("[")[0], (), values)

    many = [quantity(f"theta[{i}]", 50 + i) for i in range(6)]
    others = [quantity("tau", 300.0), quantity("mu", 900.0), quantity("flat", np.nan, np.nan)]
    names = [q.name for q in _report._worst([*many, *others], 4, 1)]
    assert names == ["theta[0]", "theta[1]", "tau", "mu"]
    assert [q.name for q in _report._worst([*many, *others], 2, 1)] == ["theta[0]", "tau"]
