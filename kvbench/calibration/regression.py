"""From hidden states to log scores: ridge regression in closed form, or a small network; and how well either does.

Parts of a surrogate have the names of :data:`kvbench.caches.surrogate.PARTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvbench.caches.surrogate import surrogate_scores

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties tried. Scikit-learn's 1.0 is the paper's, for a million tokens; with a few thousand more is better."""
WIDTH, EPOCHS, RATE, BATCH = 512, 15, 5e-3, 512
"""Of the network: hidden units, passes over the text, learning rate, tokens a step (defaults of kvpress' ``kvzap/train.py``)."""

Parts = dict[str, Tensor]


class NormalEquations:
    """Sums over tokens that a linear fit needs, in float64: no token is held."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []  # Σx, Σy, Σxxᵀ, Σxyᵀ

    def add(self, x: Tensor, y: Tensor) -> None:
        """``x`` ``[n, hidden]``, ``y`` ``[n, Hkv]``."""
        x, y = x.double(), y.double()
        fresh = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        self.sums = [a + b for a, b in zip(self.sums, fresh, strict=True)] if self.sums else fresh
        self.count += len(x)

    def solve(self, strength: float) -> Parts:
        """The linear map that makes Σ (y − w x − b)² + ``strength`` · Σ w² least; the intercept b is free."""
        sx, sy, xx, xy = self.sums
        x, y = sx / self.count, sy / self.count
        gram = xx - self.count * torch.outer(x, x)
        gram.diagonal().add_(strength)
        weight = torch.linalg.solve(gram, xy - self.count * torch.outer(x, y)).T
        return {"w1": weight, "b1": y - weight @ x}


@dataclass
class Spread:
    """Squared errors, and squared deviations of targets from their mean, by KV head."""

    errors: Tensor
    variation: Tensor

    @property
    def r2(self) -> Tensor:
        """Coefficient of determination ``[Hkv]``."""
        return 1.0 - self.errors / self.variation

    def __add__(self, other: Spread) -> Spread:
        """Of two samples, each about its own mean."""
        return Spread(self.errors + other.errors, self.variation + other.variation)


def spread(parts: Parts, x: Tensor, y: Tensor) -> Spread:
    """How a surrogate does on tokens it has not learnt from."""
    found = surrogate_scores(x[None].double(), {f"it/{name}": part.double() for name, part in parts.items()}, "it")[0].T
    y = y.double()
    return Spread((found - y).square().sum(0), (y - y.mean(0)).square().sum(0))


def best_strength(layers: Sequence[NormalEquations], held: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The penalty with the best mean R² over layers and heads on tokens ``held`` back."""

    def quality(strength: float) -> float:
        return sum(float(spread(n.solve(strength), *pair).r2.mean()) for n, pair in zip(layers, held, strict=True))

    return max(STRENGTHS, key=quality)


def fit_network(x: Tensor, y: Tensor, *, epochs: int = EPOCHS, seed: int = 0) -> Parts:
    """Two layers with a GELU between, by AdamW on the mean squared error, cosine schedule, gradients clipped to norm 1.

    Args:
        x: ``[n, hidden]``. y: ``[n, Hkv]``. seed: Of the initial weights and of the order of tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(x.shape[1], WIDTH), nn.Linear(WIDTH, y.shape[1])]
    model = nn.Sequential(layers[0], nn.GELU(), layers[1]).to(x.device)
    x, y = x.float().clone(), y.float().clone()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=order).to(x.device), BATCH):
            optimiser.zero_grad()
            F.mse_loss(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        schedule.step()
    held = {"w1": layers[0].weight, "b1": layers[0].bias, "w2": layers[1].weight, "b2": layers[1].bias}
    return {name: part.detach() for name, part in held.items()}
