"""Successive halving: many candidates on a few seeds, then the better half of them on more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from deepcache.search.candidates import Candidate

Score = Callable[[Candidate, int], float]  # on the first seeds, so many; higher is better


def halved(candidates: Sequence[Candidate], score: Score, rounds: Sequence[int]) -> list[Candidate]:
    """Those that are left after all rounds, the cheapest first.

    After each round but the last the half goes that lags farthest behind the best of what costs no more, or leads it
    least.

    Args:
        candidates: at least one.
        score: of a candidate on a number of seeds.
        rounds: numbers of seeds, ascending.

    References:
        Non-stochastic Best Arm Identification and Hyperparameter Optimization (Jamieson and Talwalkar, 2016),
        https://arxiv.org/abs/1502.07943
    """
    left = list(candidates)
    for number, count in enumerate(rounds):
        scores = {candidate: score(candidate, count) for candidate in left}
        if number < len(rounds) - 1:
            left = sorted(left, key=lambda candidate: lag(candidate, scores))[: ceil(len(left) / 2)]
    return sorted(left, key=lambda candidate: (candidate.macs, -scores[candidate]))


def lag(candidate: Candidate, scores: dict[Candidate, float]) -> float:
    """How far the best other candidate that costs no more is ahead; negative where none is."""
    others = (score for other, score in scores.items() if other is not candidate and other.macs <= candidate.macs)
    return max(others, default=float("-inf")) - scores[candidate]


def front(scores: dict[Candidate, float]) -> list[Candidate]:
    """Those that nothing of no more MACs equals, the cheapest first."""
    return sorted((c for c in scores if lag(c, scores) < 0), key=lambda candidate: candidate.macs)
