"""What is wrong with a run, in words: what was found, what it means, what to try."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprob import core
from jaxprob.analysis._checks import CHECKS, Finding, Run, count, worst_numbers
from jaxprob.analysis._summary import Summary, check_draws, quantity_names, summary


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What `diagnose` returns; `str()` gives it in words.

    Attributes:
      findings: problems first.
      chains, draws: shape of what was looked at.
      worst_numbers: a paragraph with the largest R-hat, the smallest effective sample sizes and so on.
    """

    findings: tuple[Finding, ...]
    chains: int
    draws: int
    worst_numbers: str

    @property
    def ok(self) -> bool:
        """Whether no problem was found (there may be notes)."""
        return not any(finding.severity == "problem" for finding in self.findings)

    def __str__(self) -> str:
        size = f"{count(self.chains, 'chain')} of {count(self.draws, 'draw')}"
        if self.ok:
            head = textwrap.fill(f"No problems found in {size}. {self.worst_numbers}", 88, break_on_hyphens=False)
        else:
            problems = sum(finding.severity == "problem" for finding in self.findings)
            head = f"{count(problems, 'problem')} found in {size}. Do not rely on these draws yet."
        return "\n\n".join([head, *(f"{i}. {finding}" for i, finding in enumerate(self.findings, 1))])

    __repr__ = __str__


def diagnose(
    draws: Any,
    stats: Mapping[str, Any] | Any = None,
    *,
    summary: Summary | None = None,
    max_tree_depth: int = 10,
    target_acceptance: float | None = None,
) -> Diagnosis:
    """Looks at draws and sampler statistics and says in plain words what is wrong and what to try.

    Checks: draws that are not finite or do not vary, too few draws, R-hat above 1.01, bulk or tail ESS below 100 a
    chain, divergences, what their share weighs (up to one in 10,000 draws they are a note) and where they are,
    saturated trees, E-BFMI below 0.3, acceptance far from its target; of populations, particles that hardly moved and
    evidences that disagree.

    Args:
      draws: pytree of arrays (chain, draw, ...).
      stats: mapping (or NamedTuple) of arrays (chain, draw), any of `diverging`, `tree_depth`, `energy`,
        `acceptance_rate`, `converged` (of implicit integrators), `num_halvings` (of steps that shorten themselves),
        `correlation` (of particles with where they were), `log_evidence`, `log_evidence_variance`; what is missing
        is not checked.
      summary: `summary(draws)`, if it is there already.
      max_tree_depth: the depth at which the sampler stops doubling.
      target_acceptance: what the step size was tuned for; by default 0.85 for Hamiltonian samplers (those whose
        statistics have an energy), and unknown for others.

    Returns:
      a `Diagnosis`: `.ok`, `.findings`, and its text by `str()`.

    Raises:
      ValueError: if the leaves of `draws`, or the statistics, do not agree in chains and draws, or `summary` is about
        other draws.

    >>> draws = {"mu": np.random.default_rng(0).normal(size=(4, 1000))}
    >>> print(diagnose(draws, {"diverging": np.zeros((4, 1000), bool)}))
    No problems found in 4 chains of 1,000 draws. The chains agree: the largest R-hat is
    1.000 (mu). The smallest effective sample sizes are 3,926 for the bulk (mu) and 4,028
    for the tails (mu). No draw diverged.
    """
    leaves = check_draws("diagnose", draws)
    arrays = _statistics(stats)
    shapes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise core.bad_value("diagnose", "stats", f"of shapes {shapes}", "arrays that agree in chains and draws")
    table = summary if summary is not None else _summary(draws)
    if (table.chains, table.draws, table.names) != (*leaves[0][1].shape[:2], quantity_names(leaves)):
        raise core.bad_value(
            "diagnose", "summary", f"about {table.chains} chains of {table.draws} draws", "the summary of these draws"
        )
    run = Run(leaves, arrays, table, max_tree_depth, target_acceptance)
    findings = [finding for check in CHECKS for finding in check(run)]
    findings.sort(key=lambda finding: finding.severity != "problem")
    return Diagnosis(tuple(findings), table.chains, table.draws, worst_numbers(run))


STATISTICS = (
    "diverging",
    "tree_depth",
    "energy",
    "acceptance_rate",
    "converged",
    "num_halvings",
    "correlation",
    "log_evidence",
    "log_evidence_variance",
)
_summary = summary  # the argument of `diagnose` has the same name


def _statistics(stats: Any) -> dict[str, np.ndarray]:
    if stats is None:
        return {}
    items = stats._asdict() if hasattr(stats, "_asdict") else stats
    if not isinstance(items, Mapping):
        raise core.bad_type("diagnose", "stats", stats, "a mapping of names to arrays (chain, draw)")
    arrays = {name: np.asarray(items[name]) for name in STATISTICS if items.get(name) is not None}
    for name, array in arrays.items():
        if array.ndim != 2:
            raise core.bad_value("diagnose", f"stats[{name!r}]", array, "an array (chain, draw)")
    return arrays
