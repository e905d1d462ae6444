"""The table: numbers against ArviZ and NumPy, names, layout, blocks, bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import analysis
from jaxprob.analysis import _summary


@pytest.mark.parametrize("name", ["one_chain", "odd", "short"])
def test_other_shapes_agree_with_arviz(arrays, reference, name, x64):
    x = arrays.chain_arrays()[name]
    table = analysis.summary({"x": x}, probability=0.9)
    want = reference["chains"][name]
    for column in ("r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd"):
        np.testing.assert_allclose(getattr(table, column), [want[column]], rtol=1e-10, err_msg=column)
    located = [table.mean, table.sd, table.eti_lo, table.eti_hi]
    exact = [x.mean(), x.std(ddof=1), np.quantile(x, 0.05), np.quantile(x, 0.95)]
    np.testing.assert_allclose(np.ravel(located), exact, rtol=1e-10)


@pytest.fixture
def draws(rng):
    return {
        "theta": (1e6 + rng.normal(size=(4, 100, 2, 3))).astype(np.float32),
        "count": rng.poisson(3.0, size=(4, 100)),
        "flag": rng.random((4, 100, 1)) < 0.5,
        "net": {"bias": rng.standard_cauchy(size=(4, 100)).astype(np.float32)},
        "fixed": np.full((4, 100), 0.1, np.float32),
        "broken": np.where(np.arange(100) == 7, np.nan, rng.normal(size=(4, 100))).astype(np.float32),
    }


def test_rows_are_named_and_agree_with_the_functions(draws):
    table = analysis.summary(draws)
    assert table.names == [
        *("broken", "count", "fixed", "flag[0]", "net.bias"),
        *(f"theta[{i},{j}]" for i in range(2) for j in range(3)),
    ]
    assert (len(table), table.chains, table.draws, table.probability) == (11, 4, 100, 0.89)
    columns = np.concatenate(
        [np.asarray(leaf, np.float32).reshape(4, 100, -1) for leaf in jax.tree.leaves(draws)], axis=2
    )
    exact = columns.astype(np.float64)
    np.testing.assert_allclose(table.mean, exact.mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(table.sd, exact.std(axis=(0, 1), ddof=1), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(table.eti_lo[1:], np.quantile(exact, 0.055, axis=(0, 1))[1:], rtol=1e-6)
    np.testing.assert_allclose(table.eti_hi[1:], np.quantile(exact, 0.945, axis=(0, 1))[1:], rtol=1e-6)
    np.testing.assert_allclose(table.r_hat, analysis.r_hat(columns), rtol=1e-5)
    assert table.sd[2] == 0
    assert np.isnan([table.r_hat[2], table.mean[0], table.eti_lo[0]]).all()


def test_to_dict_is_json(draws):
    table = analysis.summary(draws)
    rows = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert list(rows) == table.names
    assert rows["fixed"]["sd"] == 0
    assert rows["fixed"]["r_hat"] is None
    assert rows["theta[1,2]"]["mean"] == float(table.mean[-1])


def test_blocks_do_not_matter(draws, monkeypatch):
    whole = analysis.summary(draws)
    monkeypatch.setattr(_summary, "_BLOCK", 400 * 4)
    blocks = analysis.summary(draws)
    for column in _summary._COLUMNS:
        np.testing.assert_allclose(getattr(blocks, column), getattr(whole, column), rtol=1e-6, err_msg=column)


def made_up(n):
    """A table with known numbers, computed from nothing."""
    numbers = np.arange(1.0, n + 1)
    columns = {
        "mean": 10 * numbers,
        "sd": 1.234 * 10.0 ** -(numbers % 4),
        "eti_lo": 9 * numbers,
        "eti_hi": 11 * numbers,
        "ess_bulk": 1000.4 * numbers,
        "ess_tail": np.full(n, np.nan),
        "r_hat": np.full(n, 1.00049),
        "mcse_mean": 0.0123 * numbers,
        "mcse_sd": numbers,
    }
    return analysis.Summary([f"x[{i}]" for i in range(n)], **columns, probability=0.89, chains=4, draws=1000)


def test_the_table_reads_well():
    assert str(made_up(3)).splitlines() == [
        "          mean       sd  eti 5.5%  eti 94.5%  ess_bulk  ess_tail  r_hat  mcse_mean",
        "x[0]    10.000    0.123     9.000     11.000      1000       nan  1.000      0.012",
        "x[1]   20.0000   0.0123   18.0000    22.0000      2001       nan  1.000      0.025",
        "x[2]  30.00000  0.00123  27.00000   33.00000      3001       nan  1.000      0.037",
    ]


def test_long_tables_are_cut_in_the_middle_and_say_so():
    lines = str(made_up(1000)).splitlines()
    assert len(lines) == 1 + 60 + 1
    assert lines[31] == "... 940 of 1,000 rows left out; to_dict() has all ..."
    assert lines[30].startswith("x[29] ")
    assert lines[32].startswith("x[970] ")
    assert lines[-1].startswith("x[999] ")
    assert len(str(made_up(60)).splitlines()) == 61
    page = made_up(1000)._repr_html_()
    assert page.count("<tr>") == 62
    assert "940 of 1,000 rows left out" in page


def test_html_is_escaped():
    table = made_up(1)
    table.names[0] = "<b>"
    assert "<td>&lt;b&gt;</td>" in table._repr_html_()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 2, "0"),
        (1234567.0, 2, "1234567"),
        (0.00012345, 2, "0.00012"),
        (1.2345e-5, 2, "1.2e-05"),
        (3.4e9, 2, "3.4e+09"),
    ],
)
def test_numbers_are_short(value, digits, text):
    assert _summary._short(value, digits) == text


def test_few_draws_have_a_mean_but_no_diagnostics():
    table = analysis.summary(jnp.array([[1.0, 2.0, 3.0]]))
    assert table.names == ["value"]
    assert (table.mean[0], table.sd[0]) == (2, 1)
    assert np.isnan([table.r_hat, table.ess_bulk, table.ess_tail, table.mcse_mean, table.mcse_sd]).all()
    assert analysis.summary(jnp.array([[5.0]])).mean[0] == 5


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        ({}, ValueError, "summary: draws is without arrays; expected at least one array"),
        ({"x": np.zeros(3)}, ValueError, r"summary: draws, leaf 'x', is a float64 array of shape \(3,\)"),
        (
            {"a": np.zeros((2, 3)), "b": np.zeros((2, 4))},
            ValueError,
            "leaf 'b', is of 2 chains and 4 draws; expected 2 and 3",
        ),
        ({"x": np.zeros((0, 3))}, ValueError, "at least one chain and one draw"),
        ({"x": np.zeros((2, 3), complex)}, TypeError, "leaf 'x', is a complex128 array .*; expected real numbers"),
        ({"x": np.full((2, 3), "a")}, TypeError, "expected real numbers"),
    ],
)
def test_bad_draws_are_refused(draws, error, message):
    with pytest.raises(error, match=message):
        analysis.summary(draws)


def test_bad_probability_is_refused():
    with pytest.raises(ValueError, match=r"^summary: probability is 95; expected a number strictly between 0 and 1"):
        analysis.summary(np.zeros((2, 3)), probability=95)
