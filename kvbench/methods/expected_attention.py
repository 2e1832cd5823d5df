"""Expected attention: what future queries will look at, if they are distributed as the past ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.method import Eviction, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class ExpectedAttention(Eviction):
    """Queries before RoPE are taken as Gaussian; the score is the softmax of the expected logits' exponent.

    Devoto et al., arXiv 2510.00636, §3: with μ, Σ the mean and covariance of the queries before RoPE and R̄
    the rotation averaged over the next ``n_future_positions``, a key's logit is
    ``k·R̄μ/√d + kᵀ R̄ΣR̄ᵀ k / 2d``; the softmax over all tokens but the sinks is averaged over the query
    heads of a group and multiplied by the value's norm. The first ``n_sink`` tokens enter neither the
    statistics nor the softmax and are always kept.
    """

    name: ClassVar[str] = "expected_attention"
    title: ClassVar[str] = "Expected attention"
    paper: ClassVar[str] = "Expected Attention: KV Cache Compression by Estimating Attention, arXiv 2510.00636"
    n_future_positions: int = param(512, "positions ahead over which RoPE is averaged, tokens", least=1)
    n_sink: int = param(4, "first tokens always kept", least=0)
    use_covariance: bool = param(True, "use the queries' covariance")
    use_vnorm: bool = param(True, "weigh by the value's norm")

    @property
    def needs(self) -> Needs:
        return Needs(moments=(self.n_sink,))

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.token_scores import certain

        if tokens.seen <= self.n_sink:  # no query to expect anything of, and nothing but sinks to score
            return tokens.keys.new_zeros(tokens.keys.shape[:3], dtype=tokens.wide)
        logits = self._logits(tokens)  # [B, Hq, T]
        groups = logits.shape[1] // tokens.keys.shape[1]
        is_sink = tokens.positions < self.n_sink
        probs = logits.masked_fill(is_sink.repeat_interleave(groups, 1), float("-inf")).softmax(-1)
        scores = tokens.over_groups(probs)
        if self.use_vnorm:
            scores = scores * tokens.values.to(scores.dtype).norm(dim=-1)
        return certain(scores, is_sink)

    def _logits(self, tokens: TokenView) -> Tensor:
        moments = next((m for m in tokens.observed.moments if m.skip == self.n_sink), None)
        if moments is None or tokens.layer.rope is None:
            raise ValueError("expected_attention needs query moments and a rotary embedding")
        mean, covariance = moments.mean_and_covariance()
        rotation = tokens.layer.rope.mean_rotation(tokens.seen, self.n_future_positions, mean)
        mean = mean @ rotation.T  # [B, Hq, D]
        keys = tokens.keys.to(mean.dtype).repeat_interleave(mean.shape[1] // tokens.keys.shape[1], 1)
        logits = (keys @ mean[..., None])[..., 0] * tokens.scaling
        if self.use_covariance:
            covariance = rotation @ covariance @ rotation.T
            logits = logits + ((keys @ covariance) * keys).sum(-1) * (tokens.scaling**2 / 2)
        return logits
