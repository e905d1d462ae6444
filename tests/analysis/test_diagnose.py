"""Diagnosis: each fault that was put in is found, named, and nothing else is."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from jaxprob import analysis

SHAPE = (4, 500)


@pytest.fixture
def draws(rng):
    return {
        "mu": rng.normal(size=SHAPE).astype(np.float32),
        "sigma": rng.normal(size=SHAPE).astype(np.float32),
        "theta": rng.normal(size=(*SHAPE, 3)).astype(np.float32),
    }


@pytest.fixture
def stats(rng):
    return {
        "diverging": np.zeros(SHAPE, bool),
        "energy": rng.normal(size=SHAPE).astype(np.float32),
        "acceptance_rate": np.clip(rng.normal(0.85, 0.1, size=SHAPE), 0, 1).astype(np.float32),
        "tree_depth": rng.integers(2, 5, size=SHAPE),
        "num_steps": np.full(SHAPE, 7),
    }


def found(diagnosis):
    return {finding.name: finding.severity for finding in diagnosis.findings}


def test_a_clean_run_is_reassuring(draws, stats):
    diagnosis = analysis.diagnose(draws, stats)
    assert diagnosis.ok
    assert diagnosis.findings == ()
    text = " ".join(str(diagnosis).split())
    table = analysis.summary(draws)
    worst = int(np.argmax(table.r_hat))
    assert text.startswith("No problems found in 4 chains of 500 draws. The chains agree: the largest R-hat is ")
    assert f"{table.r_hat[worst]:.3f} ({table.names[worst]})" in text
    assert f"{table.ess_bulk.min():,.0f} for the bulk" in text
    assert "No draw diverged. E-BFMI is at least 1." in text
    assert max(map(len, str(diagnosis).splitlines())) <= 88
    assert len(text) < 400


def test_statistics_are_optional_and_may_be_a_namedtuple(draws, stats):
    class Info(NamedTuple):
        diverging: np.ndarray
        energy: np.ndarray

    assert analysis.diagnose(draws).ok
    info = Info(~stats["diverging"], stats["energy"])
    assert found(analysis.diagnose(draws, info)) == {"Divergences": "problem"}


def test_a_summary_may_be_given(draws, monkeypatch):
    table = analysis.summary(draws)
    monkeypatch.setattr("jaxprob.analysis._diagnose._summary", None)
    assert analysis.diagnose(draws, summary=table).ok


def test_chains_that_disagree(draws, stats):
    draws["theta"][1, :, 2] += 1
    diagnosis = analysis.diagnose(draws, stats)
    assert not diagnosis.ok
    assert found(diagnosis)["Chains that disagree"] == "problem"
    finding = diagnosis.findings[0]
    assert "R-hat is above 1.01 for 1 of 5 quantities; worst: theta[2] (1." in finding.what
    assert "mixed" in finding.meaning
    assert "warm-up" in finding.try_
    text = str(diagnosis)
    assert (
        "found in 4 chains of 500 draws. Do not rely on these draws yet.\n\n1. Chains that disagree (problem)" in text
    )
    assert max(map(len, text.splitlines())) <= 88


def test_sticky_chains_have_few_effective_draws(draws, stats, rng):
    x = draws["mu"]
    for t in range(1, SHAPE[1]):
        x[:, t] = 0.93 * x[:, t - 1] + np.sqrt(1 - 0.93**2) * x[:, t]
    names = found(analysis.diagnose(draws, stats))
    assert names["Few effective draws in the bulk"] == "problem"
    assert "Few effective draws in the tail" in names or "Chains that disagree" in names


def test_of_steps_that_shorten_themselves(draws, stats, rng):
    stats["diverging"] = rng.random(SHAPE) < 0.01
    assert "algorithm=mcmc.walnuts" in analysis.diagnose(draws, stats).findings[0].try_
    # Where steps are shortened already, more of it is what helps, and the acceptance of long steps says nothing.
    stats |= {"num_halvings": np.ones(SHAPE, np.int32), "acceptance_rate": np.full(SHAPE, 0.3)}
    diagnosis = analysis.diagnose(draws, stats)
    assert found(diagnosis) == {"Divergences": "problem"}
    assert "max_halvings=8" in diagnosis.findings[0].try_
    assert "target_acceptance" not in diagnosis.findings[0].try_


def test_divergences_and_where_they_are(draws, stats, rng):
    stats["diverging"] = (draws["theta"][..., 1] > 1) & (rng.random(SHAPE) < 0.3)
    number = int(stats["diverging"].sum())
    diagnosis = analysis.diagnose(draws, stats)
    assert found(diagnosis) == {"Divergences": "problem"}
    what = diagnosis.findings[0].what
    assert what.startswith(f"{number} draws of 2,000 ({100 * number / 2000:.2g} %) diverged")
    inside = np.median(draws["theta"][..., 1][stats["diverging"]])
    assert f"They gather where theta[1] is high: its median is {inside:.3g} among them" in what
    stats["diverging"] = rng.random(SHAPE) < 0.05
    assert "not gathered at low or high values" in analysis.diagnose(draws, stats).findings[0].what
    stats["diverging"] = np.zeros(SHAPE, bool)
    stats["diverging"][2, :40] = True
    assert "100 % of them are in chain 2." in analysis.diagnose(draws, stats).findings[0].what
    stats["diverging"] = np.arange(2000).reshape(SHAPE) == 3
    assert analysis.diagnose(draws, stats).findings[0].what.startswith("1 draw of 2,000 (0.05 %) diverged")


def test_the_words_for_divergences_weigh_their_share(rng):
    draws = {"mu": rng.normal(size=(8, 10_000)).astype(np.float32)}
    table = analysis.summary(draws)
    texts = {}
    for number in (1, 8, 9, 799, 800, 8000):
        diverging = np.zeros(80_000, bool)
        diverging[:: 80_000 // number][:number] = True
        diagnosis = analysis.diagnose(draws, {"diverging": diverging.reshape(8, -1)}, summary=table)
        (finding,) = diagnosis.findings
        assert finding.what.startswith(f"{number:,} draw")
        assert diagnosis.ok == (number <= 8)  # one in 10,000
        # A summary in which some draws diverged does not say that none did.
        assert ("No draw diverged" in diagnosis.worst_numbers) is False
        texts[number] = (finding.severity, finding.meaning, finding.try_)
    assert texts[1] == texts[8]
    assert texts[9] == texts[799]
    assert texts[800] == texts[8000]
    rare, some, many = texts[1], texts[9], texts[800]
    assert [severity for severity, *_ in (rare, some, many)] == ["note", "problem", "problem"]
    assert len({rare[1:], some[1:], many[1:]}) == 3
    assert "Nothing" in rare[2]
    assert some[2].index("target acceptance") < some[2].index("non-centred")
    assert many[2].index("non-centred") < many[2].index("target acceptance")
    # One alone is said to be one, with its share.
    diagnosis = analysis.diagnose(draws, {"diverging": np.arange(80_000).reshape(8, -1) == 5}, summary=table)
    assert "1 draw of 80,000 (0.0013 %) diverged." in " ".join(str(diagnosis).split("1. ")[0].split())


def test_implicit_steps_that_did_not_converge_are_counted(draws, stats):
    stats["diverging"][0, :5] = True
    stats["converged"] = np.ones(SHAPE, bool)
    assert "implicit" not in analysis.diagnose(draws, stats).findings[0].what
    stats["converged"][0, :3] = False
    assert "In 3 draws an implicit step did not converge" in analysis.diagnose(draws, stats).findings[0].what


def test_low_energy_variation(draws, stats):
    stats["energy"][3] = np.cumsum(stats["energy"][3])
    diagnosis = analysis.diagnose(draws, stats)
    assert found(diagnosis) == {"Energy explored slowly": "problem"}
    fraction = np.asarray(analysis.e_bfmi(stats["energy"]))[3]
    assert f"E-BFMI is below 0.3 in chain 3 ({fraction:.2f})." in diagnosis.findings[0].what


def test_notes_leave_the_run_ok(draws, stats):
    stats["tree_depth"][:, ::4] = 10
    stats["acceptance_rate"][1] *= 0.6
    draws["sigma"][:] = 0
    diagnosis = analysis.diagnose(draws, stats)
    assert diagnosis.ok
    assert found(diagnosis) == {
        "Quantities that do not vary": "note",
        "Trajectories cut short": "note",
        "Acceptance far from its target": "note",
    }
    text = str(diagnosis)
    assert text.startswith("No problems found")
    assert "1 quantity had the same value in every draw: sigma." in text
    assert "25 % of the draws reached the largest tree depth, 10." in text
    assert "in chain 1, where 0.85 was aimed at" in text
    quiet = analysis.diagnose(draws, stats, max_tree_depth=12, target_acceptance=0.6)
    assert list(found(quiet)) == ["Quantities that do not vary", "Acceptance far from its target"]


def test_the_acceptance_of_other_samplers_is_not_judged(draws):
    rates = {"acceptance_rate": np.full(SHAPE, 0.234, np.float32)}
    assert found(analysis.diagnose(draws, rates)) == {}
    assert list(found(analysis.diagnose(draws, rates, target_acceptance=0.8))) == ["Acceptance far from its target"]


def test_problems_come_first(draws, stats):
    draws["sigma"][:] = 0
    stats["diverging"][0, 0] = True
    severities = list(found(analysis.diagnose(draws, stats)).values())
    assert severities == ["problem", "note"]


def test_draws_that_are_not_finite(draws, stats):
    draws["theta"][0, 7, 1] = np.nan
    draws["mu"][2, :100] = np.inf
    diagnosis = analysis.diagnose(draws, stats)
    assert found(diagnosis) == {"Draws that are not finite": "problem"}
    assert "mu (5 % of it) and theta (0.017 % of it)" in diagnosis.findings[0].what


def test_chains_that_never_moved(draws, stats):
    draws["mu"][2], draws["sigma"][2], draws["theta"][2] = 0.5, 0.0, 0.1
    diagnosis = analysis.diagnose(draws, stats)
    assert "All draws are the same in chain 2." in diagnosis.findings[0].what
    still = {name: np.full_like(leaf, 0.3) for name, leaf in draws.items()}
    assert found(analysis.diagnose(still, stats)) == {"No chain ever moved": "problem"}


def test_too_few_draws_to_tell(draws, rng):
    few = analysis.diagnose({"mu": rng.normal(size=(4, 3)).astype(np.float32)})
    assert found(few) == {"Too few draws to tell": "problem"}
    assert few.findings[0].what.startswith(
        "There are 12 draws, 3 in a chain; the least to judge by are 400 that are ind"
    )
    assert few.findings[0].try_ == "At least 200 draws a chain."
    # Many chains make up for short ones, but not for chains too short to have an autocorrelation.
    assert reshaped(draws, 600, 20).ok
    assert found(reshaped(draws, 600, 9)) == {"Too few draws to tell": "problem"}
    assert found(reshaped(draws, 4, 99)) == {"Too few draws to tell": "problem"}


def reshaped(draws, chains, length):
    """The diagnosis of other draws that would have the same table."""
    table = dataclasses.replace(analysis.summary(draws), chains=chains, draws=length)
    rng = np.random.default_rng(1)
    other = {name: rng.normal(size=(chains, length, *leaf.shape[2:])) for name, leaf in draws.items()}
    return analysis.diagnose(other, summary=table)


def test_one_chain_is_said_to_be_one(draws):
    text = " ".join(str(reshaped(draws, 1, 500)).split())
    assert "found in 1 chain of 500 draws. The two halves of the one chain agree" in text


def test_the_summary_of_other_draws_is_refused(draws):
    table = analysis.summary(draws)
    with pytest.raises(ValueError, match="^diagnose: summary is about 4 chains of 500 draws; expected the summary of"):
        analysis.diagnose({"mu": draws["mu"]}, summary=table)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"diverging": np.zeros(3, bool)}, r"stats\['diverging'\] is a bool array of shape \(3,\)"),
        ({"diverging": np.zeros((4, 5), bool), "energy": np.zeros((4, 6))}, "expected arrays that agree"),
        (3.0, "stats is 3.0; expected a mapping"),
    ],
)
def test_bad_statistics_are_refused(draws, stats, message):
    with pytest.raises((ValueError, TypeError), match="^diagnose: .*" + message):
        analysis.diagnose(draws, stats)


def test_the_log_evidence_of_populations_is_that_of_the_mean_evidence(draws):
    logs = np.log([1.0, 2.0, 3.0, 6.0]) - 5000
    stats = {"log_evidence": np.repeat(logs[:, None], 500, 1), "correlation": np.full(SHAPE, 0.05)}
    diagnosis = analysis.diagnose(draws, stats)
    text = " ".join(str(diagnosis).split())
    error = np.std([1, 2, 3, 6], ddof=1) / 2 / 3
    assert f"The log evidence is {np.log(3) - 5000:.2f}, with a standard error of {error:.2g}" in text
    assert diagnosis.ok


def test_the_log_evidence_of_one_population_has_the_error_that_it_estimates(draws):
    one = {name: leaf[:1] for name, leaf in draws.items()}
    for variance, said in (
        (0.0144, ", with a standard error of 0.12 as the one chain itself estimates."),
        (np.nan, "."),
    ):
        stats = {"log_evidence": np.full((1, 500), -3.0), "log_evidence_variance": np.full((1, 500), variance)}
        text = " ".join(str(analysis.diagnose(one, stats)).split())
        assert "The log evidence is -3.00" + said in text


def test_populations_that_disagree_and_particles_that_hardly_moved(draws):
    stats = {
        "log_evidence": np.repeat([[0.0], [3.0], [1.0], [-2.0]], 500, 1),
        "correlation": np.repeat([[0.1], [0.9], [np.nan], [0.2]], 500, 1),
    }
    problem, note = analysis.diagnose(draws, stats).findings
    assert (problem.severity, problem.name) == ("problem", "Populations that disagree about the evidence")
    assert "2.08" in problem.what
    assert (note.severity, note.name) == ("note", "Particles that hardly moved")
    assert "0.90 in chain 1 and nan in chain 2" in note.what
