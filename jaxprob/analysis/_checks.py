"""The checks behind `diagnose`: each looks at a run and yields what it found.

The thresholds are those that the sources recommend. A *problem* makes the draws untrustworthy; a *note* is something
worth knowing (wasted work, quantities that do not vary) which leaves them valid.

Source: Vehtari et al. (2021), Bayesian Analysis 16(2), for R-hat and ESS; Betancourt (2017), "A conceptual introduction
to Hamiltonian Monte Carlo", for divergences, tree depth and energy.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxprob.analysis import _convergence as convergence
from jaxprob.analysis._summary import Summary, panels, quantity_names

MAX_R_HAT = 1.01
MIN_ESS_PER_CHAIN = 100
MAX_CHAINS_COUNTED = 16
"""Beyond so many chains the minimal ESS stays where it is: it is there to make R-hat and ESS reliable themselves."""
MIN_DRAWS_PER_CHAIN = 10
"""In halves of fewer than 5 draws Geyer's sequence ends before it begins, whatever the autocorrelation."""
MIN_E_BFMI = 0.3
RARE_DIVERGENCES, MANY_DIVERGENCES = 1e-4, 0.01
"""Shares of draws: up to the first, what diverging trajectories miss can hardly show in a summary; from the second on
the sampler is at odds with the density. Neither is a law: how much mass is missed, divergences do not say."""
MAX_SATURATED = 0.01
"""Share of draws at the largest tree depth that is still an accident."""
ACCEPTANCE_TOLERANCE = 0.19
MAX_CORRELATION = 0.5
"""Of particles with where they were before they were moved: beyond it most of what there is came from resampling."""
MAX_EVIDENCE_SPREAD = 1.0
"""Standard deviation of log evidences between populations beyond which their mean says little."""


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
      severity: "problem" (do not trust the draws yet) or "note".
      name: short title.
      what: what was found, with numbers.
      meaning: what it means.
      try_: what to try.
    """

    severity: Literal["problem", "note"]
    name: str
    what: str
    meaning: str
    try_: str

    def __str__(self) -> str:
        paragraphs = [("Found: ", self.what), ("Means: ", self.meaning), ("Try:   ", self.try_)]
        lines = [
            textwrap.fill(text, 88, initial_indent=f"   {label}", subsequent_indent=" " * 10, break_on_hyphens=False)
            for label, text in paragraphs
            if text
        ]
        return "\n".join([f"{self.name} ({self.severity})", *lines])


class Run(NamedTuple):
    """What the checks look at."""

    leaves: list[tuple[str, Any]]
    stats: dict[str, np.ndarray]
    table: Summary
    max_tree_depth: int
    target_acceptance: float | None


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 draw`, `4,000 draws`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _listed(items: list[str], most: int = 3) -> str:
    """`a, b, c and 5 more`."""
    shown = items[:most]
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most:,} more"
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else "".join(shown)


def _worst(table: Summary, values: np.ndarray, bad: np.ndarray, form: str, descending: bool) -> str:
    """The names of the worst quantities with their values, worst first."""
    order = np.argsort(-values if descending else values, kind="stable")
    return _listed([f"{table.names[i]} ({values[i]:{form}})" for i in order if bad[i]])


def _finite_share(leaf: Any) -> float:
    size = math.prod(leaf.shape)
    return sum(np.count_nonzero(np.isfinite(panel)) for panel in panels(leaf)) / size if size else 1.0


def _finite_draws(run: Run) -> Iterator[Finding]:
    shares = [(name, _finite_share(leaf)) for name, leaf in run.leaves]
    bad = [f"{name} ({_percent(1 - share)} of it)" for name, share in shares if share < 1]
    if bad:
        yield Finding(
            "problem",
            "Draws that are not finite",
            f"There are NaN or infinite draws in {_listed(bad)}.",
            "The log density or a transformation overflowed or was undefined there. Nothing computed from these "
            "quantities means anything.",
            "Evaluate the log density at the draws just before; look for logarithms and divisions of 0, exponentials "
            "of large numbers, and constraints that are missing from a prior.",
        )


def _varying_draws(run: Run) -> Iterator[Finding]:
    constant = run.table.sd == 0
    if len(constant) and np.all(constant) and run.table.chains * run.table.draws > 1:
        yield Finding(
            "problem",
            "No chain ever moved",
            "Every draw of every chain is the same.",
            "Every proposal was rejected: these are copies of the initial position.",
            "Check that the log density is finite around the initial position and try a smaller step size.",
        )
        return
    if run.table.draws > 1:
        moved = np.zeros(run.table.chains, bool)
        for _, leaf in run.leaves:
            for panel in panels(leaf):
                moved |= np.any(panel != panel[:, :1], axis=(1, 2))
        if not np.all(moved):
            stuck = np.flatnonzero(~moved).tolist()
            yield Finding(
                "problem",
                "Chains that never moved",
                f"All draws are the same in {_listed([f'chain {i}' for i in stuck])}.",
                "Every proposal of such a chain was rejected: its draws are copies of one position.",
                "Look at where it started, and start it elsewhere or with a smaller step size.",
            )
    if np.any(constant):
        names = [run.table.names[i] for i in np.flatnonzero(constant)]
        yield Finding(
            "note",
            "Quantities that do not vary",
            f"{count(len(names), 'quantity', 'quantities')} had the same value in every draw: {_listed(names)}.",
            "They are constants of the model, such as the zeros of a triangular matrix, or they never moved.",
            "Nothing, if they are meant to be constant.",
        )


def _min_ess(table: Summary) -> int:
    return MIN_ESS_PER_CHAIN * min(table.chains, MAX_CHAINS_COUNTED)


def _agreement(run: Run) -> Iterator[Finding]:
    table = run.table
    bad = table.r_hat > MAX_R_HAT
    if np.any(bad):
        yield Finding(
            "problem",
            "Chains that disagree",
            f"R-hat is above {MAX_R_HAT} for {np.sum(bad):,} of {len(table):,} quantities; worst: "
            f"{_worst(table, table.r_hat, bad, '.3g', True)}.",
            "The chains, or the halves of a chain, explored different regions: they have not mixed, or they are still "
            "on their way. Means and intervals depend on where they started.",
            "Twice the warm-up and twice the draws. If R-hat stays high, look at the traces of the worst quantities: "
            "for several modes, for quantities that the data do not determine (a tighter prior), and for strong "
            "dependence on a scale parameter (the non-centred form).",
        )


def _effective_draws(run: Run) -> Iterator[Finding]:
    table, least = run.table, _min_ess(run.table)
    total = table.chains * table.draws
    if total < least or table.draws < MIN_DRAWS_PER_CHAIN:
        wanted = max(MIN_DRAWS_PER_CHAIN, -(-2 * least // table.chains))
        yield Finding(
            "problem",
            "Too few draws to tell",
            f"There are {count(total, 'draw')}, {table.draws:,} in a chain; the least to judge by are {least:,} that "
            f"are independent, and {MIN_DRAWS_PER_CHAIN} in a chain.",
            "R-hat and effective sample size are too uncertain themselves to say whether the chains have converged.",
            f"At least {wanted:,} draws a chain.",
        )
        return
    for values, part, affected in (
        (table.ess_bulk, "bulk", "Means and medians"),
        (table.ess_tail, "tail", "Standard deviations and the ends of intervals"),
    ):
        bad = values < least
        if np.any(bad):
            lowest = float(np.nanmin(values))
            factor = int(np.ceil(least / lowest))
            more = (
                f"About {factor:,} times as many draws would do"
                if factor <= 20
                else "More draws alone are not the answer here"
            )
            yield Finding(
                "problem",
                f"Few effective draws in the {part}",
                f"The {part} effective sample size is below {least:,} for {np.sum(bad):,} of {len(table):,} "
                f"quantities; worst: {_worst(table, values, bad, ',.0f', False)}.",
                f"{affected} of these quantities are not known well, nor is the effective sample size itself: the "
                "draws of a chain depend strongly on each other.",
                f"{more}. Longer warm-up, a dense metric or another parametrisation lessen the dependence.",
            )


def _divergences(run: Run) -> Iterator[Finding]:
    if "diverging" not in run.stats:
        return
    diverging = run.stats["diverging"].astype(bool)
    number = int(diverging.sum())
    if not number:
        return
    share = number / diverging.size
    by_chain = diverging.sum(axis=1)
    worst = int(np.argmax(by_chain))
    concentrated = len(by_chain) > 1 and number >= 10 and by_chain[worst] > 0.7 * number
    chain = f" {_percent(by_chain[worst] / number)} of them are in chain {worst}." if concentrated else ""
    yield Finding(
        "problem" if share > RARE_DIVERGENCES else "note",
        "Divergences",
        f"{_diverged(diverging)}: the simulated trajectory did not follow the true one."
        f"{_unconverged(run.stats)}{chain}{_where(run.leaves, diverging)}",
        *_weight(share, halved="num_halvings" in run.stats),
    )


def _diverged(diverging: np.ndarray) -> str:
    number = int(diverging.sum())
    return f"{count(number, 'draw')} of {diverging.size:,} ({_percent(number / diverging.size)}) diverged"


def _weight(share: float, halved: bool) -> tuple[str, str]:
    """What a share of divergences means, and what to try; `halved`: whether steps were shortened where they failed."""
    careful = (
        "more halvings of a step (algorithm=partial(mcmc.walnuts, max_halvings=8))"
        if halved
        else "steps that shorten themselves there (algorithm=mcmc.walnuts, or --algorithm walnuts), or a target "
        "acceptance of 0.95 or 0.99, which makes all of them smaller (algorithm=partial(mcmc.warmup, mcmc.nuts, "
        "target_acceptance=0.95), or --target-acceptance)"
    )
    reparametrise = "for hierarchical models the non-centred form"
    if share <= RARE_DIVERGENCES:
        return (
            "A divergence in 10,000 draws or fewer: the place that the sampler cannot enter is small, or seldom come "
            "near. Means and intervals hardly depend on it; the far tails of what it concerns may.",
            f"Nothing, if means and intervals are what is wanted. To be sure, {careful}: the summary should stay.",
        )
    if share < MANY_DIVERGENCES:
        return (
            "There are regions, usually narrow ones, that the sampler cannot enter with such steps. The draws "
            "leave them out, and more draws do not bring them in: results are biased by as much as such a region "
            "weighs, which the number of divergences does not say.",
            f"First {careful}. If divergences stay, or the summary moves: another parametrisation ({reparametrise}), "
            "or a stronger prior for scales.",
        )
    return (
        "So many trajectories fail that the step size does not suit the density where much of it is. Whole regions are "
        "left out, and the results are biased in a way that more draws do not cure.",
        f"Reparametrise first ({reparametrise}), or a stronger prior for scales; then {careful}.",
    )


def _unconverged(stats: dict[str, np.ndarray]) -> str:
    """How many draws of an implicit integrator stayed because an iteration did not converge, as a sentence."""
    if "converged" not in stats:
        return ""
    number = int((~stats["converged"].astype(bool)).sum())
    return f" In {count(number, 'draw')} an implicit step did not converge or lead back." if number else ""


def _where(leaves: list[tuple[str, Any]], diverging: np.ndarray) -> str:
    """The quantity whose divergent draws lie most to one side of all its draws, as a sentence.

    Under no relation the mean relative rank of n draws has standard deviation 1 / sqrt(12 n); the threshold grows with
    the number of quantities that compete for the largest.
    """
    at = diverging.reshape(-1)
    number = int(at.sum())
    best, place, shift = "", (0.0, 0.0), 0.0
    names = iter(quantity_names(leaves))
    for _, leaf in leaves:
        if leaf.shape[:2] != diverging.shape:
            return ""
        for column in (panel[:, :, j].reshape(-1) for panel in panels(leaf) for j in range(panel.shape[2])):
            name = next(names)
            entries = np.sort(column)
            inside = column[at]
            below, not_above = np.searchsorted(entries, inside, "left"), np.searchsorted(entries, inside, "right")
            moved = float(np.mean(below + not_above)) / (2 * at.size) - 0.5
            if abs(moved) > abs(shift):
                best, shift, place = name, moved, (float(np.median(inside)), float(np.median(column)))
    threshold = np.sqrt((9 + 2 * np.log(max(1, sum(math.prod(leaf.shape[2:]) for _, leaf in leaves)))) / (12 * number))
    if abs(shift) < max(0.15, threshold):
        return " They are not gathered at low or high values of any one quantity." if number >= 20 else ""
    side = "low" if shift < 0 else "high"
    return (
        f" They gather where {best} is {side}: its median is {place[0]:.3g} among them, {place[1]:.3g} over all draws."
    )


def _tree_depth(run: Run) -> Iterator[Finding]:
    if "tree_depth" not in run.stats:
        return
    share = float(np.mean(run.stats["tree_depth"] >= run.max_tree_depth))
    if share > MAX_SATURATED:
        yield Finding(
            "note",
            "Trajectories cut short",
            f"{_percent(share)} of the draws reached the largest tree depth, {run.max_tree_depth}.",
            "The draws are valid, but trajectories ended before they turned back: each costs "
            f"{2**run.max_tree_depth:,} gradients and moves less far than it should. The posterior has directions of "
            "very different width, or the step size is tiny.",
            "Rescale or reparametrise; a longer warm-up or a dense metric; a larger max_tree_depth only if the rest is "
            "well.",
        )


def _energy(run: Run) -> Iterator[Finding]:
    if "energy" not in run.stats:
        return
    fraction = np.asarray(convergence.e_bfmi(run.stats["energy"]))
    low = np.flatnonzero(fraction < MIN_E_BFMI)
    if len(low):
        which = _listed([f"chain {i} ({fraction[i]:.2f})" for i in low[np.argsort(fraction[low])]])
        yield Finding(
            "problem",
            "Energy explored slowly",
            f"E-BFMI is below {MIN_E_BFMI} in {which}.",
            "The density varies over a wider range than one momentum can supply energy for: the sampler crosses from "
            "the centre to the tails slowly, and the tails may be cut off.",
            "Reparametrise so that tails are lighter or the scale varies less (for hierarchical models the non-centred "
            "form); a longer warm-up.",
        )


def _acceptance(run: Run) -> Iterator[Finding]:
    target = run.target_acceptance
    if target is None and "energy" in run.stats:
        target = 0.85
    if "acceptance_rate" not in run.stats or target is None:
        return
    if "num_halvings" in run.stats:  # the rate is that of steps before they are shortened, which does not hold them up
        return
    rates = np.mean(run.stats["acceptance_rate"], axis=1)
    far = np.flatnonzero(~(np.abs(rates - target) <= ACCEPTANCE_TOLERANCE))
    if len(far):
        which = _listed([f"{rates[i]:.2f} in chain {i}" for i in far])
        low = bool(np.any(~(rates[far] > target)))
        yield Finding(
            "note",
            "Acceptance far from its target",
            f"The mean acceptance rate is {which}, where {target:.2f} was aimed at.",
            "The step size was tuned for a region unlike the one that was sampled"
            + (": steps are too long there, and the chain stays where it is." if low else ": steps are too short."),
            "A longer warm-up; if that does not help, a fixed "
            + ("smaller" if low else "larger")
            + " step size, or another parametrisation.",
        )


def _moves(run: Run) -> Iterator[Finding]:
    if "correlation" not in run.stats:
        return
    correlation = run.stats["correlation"][:, -1]
    poor = np.flatnonzero(~(correlation <= MAX_CORRELATION))
    if len(poor):
        yield Finding(
            "note",
            "Particles that hardly moved",
            "After all their moves particles are correlated with where they were by "
            + _listed([f"{correlation[i]:.2f} in chain {i}" for i in poor])
            + ".",
            "Siblings stay siblings: effective sample sizes are too large, and the log evidence may be too low.",
            "Longer trajectories, move=partial(mcmc.hmc, num_integration_steps=16, jitter=0.5), more of them, "
            "max_moves=1000, or another parametrisation.",
        )


def _evidence(run: Run) -> Iterator[Finding]:
    if "log_evidence" not in run.stats or run.table.chains < 2:
        return
    spread = float(np.std(run.stats["log_evidence"][:, -1], ddof=1))
    if not spread <= MAX_EVIDENCE_SPREAD:
        yield Finding(
            "problem",
            "Populations that disagree about the evidence",
            f"The log evidences of the chains have a standard deviation of {spread:.2f}.",
            "Too few particles get from the prior to the posterior, or the moves do not bring them about; the chains "
            "may have found different parts of the posterior, with the wrong weights.",
            "More particles, a larger effective_sample_size (0.9), more moves.",
        )


def log_mean_evidence(log_evidence: np.ndarray) -> tuple[float, float]:
    """The log of the mean of evidences, (chain,), which is what they estimate, and its standard error."""
    top = np.max(log_evidence)
    values = np.exp(log_evidence - top)
    error = np.std(values, ddof=1) / math.sqrt(values.size) / np.mean(values) if values.size > 1 else math.nan
    return float(top + np.log(np.mean(values))), float(error)


CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _finite_draws,
    _varying_draws,
    _agreement,
    _effective_draws,
    _divergences,
    _energy,
    _tree_depth,
    _acceptance,
    _moves,
    _evidence,
)


def worst_numbers(run: Run) -> str:
    """The largest R-hat, the smallest effective sample sizes and so on, as sentences."""
    table = run.table
    parts = []
    if np.any(np.isfinite(table.r_hat)):
        i, j, k = int(np.nanargmax(table.r_hat)), int(np.nanargmin(table.ess_bulk)), int(np.nanargmin(table.ess_tail))
        agree = "The chains agree" if table.chains > 1 else "The two halves of the one chain agree"
        parts += [
            f"{agree}: the largest R-hat is {table.r_hat[i]:.3f} ({table.names[i]}).",
            f"The smallest effective sample sizes are {table.ess_bulk[j]:,.0f} for the bulk ({table.names[j]}) and "
            f"{table.ess_tail[k]:,.0f} for the tails ({table.names[k]}).",
        ]
    if "diverging" in run.stats:
        diverging = run.stats["diverging"].astype(bool)
        parts.append(f"{_diverged(diverging)}." if diverging.any() else "No draw diverged.")
    if "log_evidence" in run.stats:
        value, error = log_mean_evidence(run.stats["log_evidence"][:, -1].astype(float))
        source = "from the spread of the chains"
        if run.table.chains == 1 and "log_evidence_variance" in run.stats:
            error = math.sqrt(run.stats["log_evidence_variance"][0, -1])
            source = "as the one chain itself estimates"
        between = "" if math.isnan(error) else f", with a standard error of {error:.2g} {source}"
        parts.append(f"The log evidence is {value:.2f}{between}.")
    if "energy" in run.stats and np.any(np.isfinite(fraction := np.asarray(convergence.e_bfmi(run.stats["energy"])))):
        parts.append(f"E-BFMI is at least {np.nanmin(fraction):.2f}.")
    return " ".join(parts)
