"""The best scalar codebook for a coordinate of a random direction, computed rather than tabled.

A coordinate of a vector uniform on the unit sphere of ``dim`` dimensions has density
``f(x) ∝ (1 − x²)^((dim − 3)/2)`` on [−1, 1] (TurboQuant, arXiv 2504.19874, Lemma 1), near ``N(0, 1/dim)``.
``f`` is log-concave, so the optimal centroids (its eq. 4, a continuous 1-D k-means) are the one fixed
point of Lloyd's iteration: each centroid is its cell's mean, each boundary the midpoint of two centroids.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REACH = 12.0
"""Standard deviations beyond which the density is zero to double precision."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
"""Of the quadrature in each cell."""
TOLERANCE = 1e-13
LLOYD, ROUNDS = 40, 200
"""Lloyd's iteration is slow near the end: after ``LLOYD`` rounds, Newton's on the same equation."""


@lru_cache(maxsize=64)
def lloyd_max(dim: int, bits: int) -> tuple[float, ...]:
    """The ``2^bits`` centroids, rising and symmetric about zero.

    Args:
        dim: Dimensions of the unit vectors, at least 3.
        bits: At least 1.

    Raises:
        ValueError: an argument below its least value.
    """
    if dim < 3 or bits < 1:
        raise ValueError(f"dim={dim}, bits={bits}; a codebook needs at least 3 dimensions and 1 bit")
    half = _positive_centroids(dim, 1 << (bits - 1))
    return (*(-half[::-1]).tolist(), *half.tolist())


def _positive_centroids(dim: int, cells: int) -> Array:
    """The upper half of the codebook, ``[cells]``: the optimum is symmetric, with a boundary at zero."""
    end = min(1.0, REACH / dim**0.5)
    centroids: Array = np.linspace(0.0, min(1.0, 3.0 / dim**0.5), 2 * cells + 1)[1::2]
    for done in range(ROUNDS):
        edges = np.concatenate(([0.0], (centroids[:-1] + centroids[1:]) / 2, [end]))
        means, slopes = _means(edges, dim)
        gap = means - centroids
        if np.abs(gap).max() < TOLERANCE:
            break
        centroids = means if done < LLOYD else centroids + np.linalg.solve(np.eye(cells) - slopes, gap)
    return centroids


def _means(edges: Array, dim: int) -> tuple[Array, Array]:
    """Mean of ``f`` over each cell between ``edges``, ``[cells]``, and its derivatives by the centroids, ``[cells, cells]``.

    With ``x = sin θ`` the density is ``cos^(dim−2) θ``, smooth to the ends. Its first moment has a closed
    form; its mass is integrated by Gauss and Legendre's rule. A boundary moves half as far as either of its centroids.
    """
    angles = np.arcsin(edges)
    low, high = angles[:-1, None], angles[1:, None]
    at = (low + high) / 2 + (high - low) / 2 * NODES
    mass = ((high - low) / 2 * WEIGHTS * np.cos(at) ** (dim - 2)).sum(1)
    powers = np.cos(angles) ** (dim - 1)
    means = (powers[:-1] - powers[1:]) / (dim - 1) / mass
    inner = np.cos(angles[1:-1]) ** (dim - 3)  # the density at the boundaries that move
    by_upper, by_lower = inner * (edges[1:-1] - means[:-1]) / mass[:-1], inner * (means[1:] - edges[1:-1]) / mass[1:]
    slopes = np.diag(np.append(by_upper, 0.0) + np.append(0.0, by_lower)) + np.diag(by_upper, 1) + np.diag(by_lower, -1)
    return means, slopes / 2
