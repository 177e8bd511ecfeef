"""Confidence intervals of medians."""

import math


def interval(values):
    """A 95 % interval of the median, from order statistics: without assumptions about the distribution."""
    values, n = sorted(values), len(values)
    outside = 0  # how many values lie outside at either end
    while sum(math.comb(n, k) for k in range(outside + 1)) / 2**n <= 0.025:
        outside += 1
    outside = max(outside - 1, 0)
    return values[outside], values[n - 1 - outside]
