"""What every method promises, and is refused for at the place where it breaks it: as its own row's failure and no other's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from making import method_of
from torch import Tensor

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.caches.checked import SCORES, Watch, checked_index
from kvbench.caches.dense import DenseLayer
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.marks import marks, same
from kvbench.caches.ragged import SelectedHeads
from kvbench.errors import MethodError
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_model
from kvbench.instruments.verify import Sizes, conformance
from kvbench.methods.adakv import AdaKV
from kvbench.methods.base import Eviction, Method
from kvbench.methods.composed import Composed
from kvbench.methods.think import ThinK

pytestmark = pytest.mark.fast
CONTEXT, CONTINUATION = 100, 12
Score = Callable[[TokenView], Any]


def fine(t: TokenView) -> Tensor:
    return -t.keys.norm(dim=-1)


def one(value: float) -> Score:
    return lambda t: fine(t).index_fill(2, torch.tensor([7]), value)


BROKEN: dict[str, Score] = {
    "all NaN": lambda t: fine(t) * float("nan"),
    "one NaN": one(float("nan")),
    "one -inf": one(float("-inf")),
    "all inf": lambda t: torch.full_like(fine(t), float("inf")),
    "a head all inf": lambda t: torch.cat((torch.full_like(fine(t)[:, :1], float("inf")), fine(t)[:, 1:]), 1),
    "too few": lambda t: fine(t)[:, :, :-3],
    "one row for all heads": lambda t: fine(t)[:, :1],
    "one a query head": lambda t: fine(t).repeat_interleave(2, 1),
    "one a channel": lambda t: -t.keys.abs(),
    "booleans": lambda t: fine(t) > -1,
    "no tensor": lambda t: fine(t).tolist(),
    "nothing": lambda t: None,
}


@dataclass(frozen=True)
class Scored(Eviction):
    """An eviction by any score."""

    name: ClassVar[str] = "scored"
    title: ClassVar[str] = "Scored"
    paper: ClassVar[str] = "this page"
    by: Score = fine

    def score(self, tokens: TokenView) -> Tensor:
        return self.by(tokens)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class HeadWise(AdaKV):
    by: Score = fine

    def score(self, tokens: TokenView) -> Tensor:
        return self.by(tokens)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Channels(ThinK):
    by: Score = fine

    def score(self, prompt: TokenView) -> Tensor:
        return self.by(prompt)  # type: ignore[no-any-return]


PATHS: dict[str, tuple[Callable[[Score], Method], str]] = {
    "prompt": (lambda by: Scored(by=by), "prefill"),
    "streaming": (lambda by: Scored(by=by), "streaming"),
    "composed": (lambda by: Composed(Scored(by=by), method_of("int4")), "prefill"),
    "composed, streaming": (lambda by: Composed(Scored(by=by), method_of("int4")), "streaming"),
    "head-wise": (lambda by: HeadWise(by=by), "prefill"),
    "head-wise, composed": (lambda by: Composed(HeadWise(by=by), method_of("int4")), "prefill"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    model = make_tiny_model("qwen2")
    use_kvbench_attention(model)
    return model


def runner(model: Any, protocol: Any = "prefill") -> Runner:
    return Runner(model, Geometry.of(model), {}, CacheOptions(None, protocol, context=2 * CONTEXT, chunk_size=4))


def tokens() -> Tensor:
    return torch.randint(3, 128, (1, 2 * CONTEXT + CONTINUATION), generator=torch.Generator().manual_seed(2))


def scores_of(method: Method, walk: Runner) -> Tensor:
    """Hidden states of the continuation, by the walk's protocol."""
    if walk.options.protocol == "streaming":
        return walk.streaming(walk.cache(method), tokens(), CONTINUATION)
    prompt = walk.prefill(tokens()[:, : 2 * CONTEXT], method.needs)
    return walk.continuation(prompt, walk.compress(method, prompt), tokens()[:, 2 * CONTEXT :])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scores", BROKEN)
def test_scores_that_rank_nothing_are_refused(scores: str, path: str, model: Any) -> None:
    make, protocol = PATHS[path]
    with pytest.raises(MethodError, match="scores"):
        scores_of(make(BROKEN[scores]), runner(model, protocol))


@pytest.mark.parametrize("path", PATHS)
def test_scores_that_rank_are_not(path: str, model: Any) -> None:
    make, protocol = PATHS[path]
    for by in (fine, one(float("inf")), lambda t: t.positions, lambda t: fine(t).half()):
        assert torch.isfinite(scores_of(make(by), runner(model, protocol))).all()


def test_scores_are_looked_at_while_decoding_too(model: Any) -> None:
    """Well at the prompt, NaN at the first eviction after it."""
    later = lambda t: fine(t) * (float("nan") if t.seen > 2 * CONTEXT else 1)  # noqa: E731
    with pytest.raises(MethodError, match="scores"):
        scores_of(Scored(by=later, decode="hold", interval=4), runner(model))


def test_elsewhere_than_on_the_cpu_nobody_waits_until_somebody_looks() -> None:
    watch = Watch()
    watch.found[SCORES] = torch.tensor(True)  # as it lies on a device
    with pytest.raises(MethodError, match="scores"):
        watch.look()
    watch.look()  # once is enough


@pytest.mark.parametrize("scores", ["all NaN", "too few", "nothing"])
def test_scores_of_channels_are_looked_at(scores: str, model: Any) -> None:
    broken: dict[str, Score] = {
        "all NaN": lambda t: t.keys.mean(2) * float("nan"), "too few": lambda t: t.keys.mean(2)[..., :-1], "nothing": lambda t: None
    }  # fmt: skip
    with pytest.raises(MethodError, match="scores"):
        scores_of(Channels(by=broken[scores]), runner(model))


@dataclass(frozen=True)
class Keeping(Scored):
    """An eviction that says in its own way what stays."""

    count: Any = None
    index: Any = None

    def kept(self, tokens: int, layer: LayerContext) -> int:
        return super().kept(tokens, layer) if self.count is None else self.count  # type: ignore[no-any-return]

    def layer(self, context: LayerContext) -> LayerCache:
        return Choosing(context, self) if self.index is not None else EvictedLayer(context, self)


class Choosing(EvictedLayer):
    def choose(self, prompt: TokenView) -> Tensor:
        chosen = self.rule.index  # type: ignore[attr-defined]
        return torch.tensor(chosen).expand(*prompt.keys.shape[:2], -1) if isinstance(chosen, list) else chosen


@pytest.mark.parametrize("count", [0, -3, 2.5, True, float("nan")])
def test_a_number_of_tokens_that_is_none_is_refused(count: Any, model: Any) -> None:
    for protocol in ("prefill", "streaming"):
        with pytest.raises(MethodError, match="to be kept"):
            scores_of(Keeping(count=count), runner(model, protocol))


def test_more_tokens_than_there_are_is_all_of_them(model: Any) -> None:
    walk = runner(model)
    prompt = walk.prefill(tokens()[:, :CONTEXT], Keeping().needs)
    assert walk.compress(Keeping(count=10**6), prompt).layers[0].length == CONTEXT


@pytest.mark.parametrize("index", [[1, 2, 2, 9], [0, -1], [3, 2 * CONTEXT], [0.5, 1.5], [True, False], "all"])
def test_tokens_that_are_none_are_not_kept(index: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="tokens to keep"):
        scores_of(Keeping(index=index), runner(model))


@pytest.mark.parametrize("mask", [lambda t: fine(t), lambda t: (fine(t) > -9)[:, :, 1:], lambda t: None])
def test_marks_of_kept_tokens_are_looked_at(mask: Score, model: Any) -> None:
    @dataclass(frozen=True)
    class Marked(Method):
        name: ClassVar[str] = "marked"

        def layer(self, context: LayerContext) -> LayerCache:
            return SelectedHeads(context, self.needs, DenseLayer, lambda t: (mask(t), fine(t)))

    with pytest.raises(MethodError, match="marked"):
        scores_of(Marked(), runner(model))


def spoilt(change: Callable[[TokenView], Any]) -> Score:
    def by(t: TokenView) -> Tensor:
        scores = fine(t)
        change(t)
        return scores

    return by


CHANGES: dict[str, Callable[[TokenView], Any]] = {
    "keys zeroed": lambda t: t.keys.mul_(0),
    "values, one number": lambda t: t.values[0, 1, 5, 3].add_(1e-3),
    "tokens reversed": lambda t: t.keys.copy_(t.keys.flip(2)),
    "channels swapped": lambda t: t.values.copy_(t.values.flip(3)),
    "sorted": lambda t: t.keys.copy_(t.keys.sort(-1).values),
    "by numpy": lambda t: t.keys.numpy().fill(0),
    "by data": lambda t: t.keys.data.neg_(),
    "queries": lambda t: t.observed.window.zero_(),  # type: ignore[union-attr]
}


@dataclass(frozen=True)
class Watching(Scored):
    @property
    def needs(self) -> Any:
        return method_of("snapkv:window=8").needs


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_prompt_fails_its_row_and_no_other(change: str, model: Any) -> None:
    walk, method = runner(model), method_of("snapkv:window=8")
    prompt = walk.prefill(tokens()[:, : 2 * CONTEXT], method.needs)
    want = walk.continuation(prompt, walk.compress(method, prompt), tokens()[:, 2 * CONTEXT :])
    with pytest.raises(MethodError, match="changed the prompt"):
        walk.compress(Watching(by=spoilt(CHANGES[change])), prompt)
    assert prompt.untouched()
    got = walk.continuation(prompt, walk.compress(method, prompt), tokens()[:, 2 * CONTEXT :])
    assert torch.equal(got, want)


@pytest.mark.parametrize(("hold", "protocol"), [("hold", "prefill"), ("grow", "streaming")])
def test_scores_leave_stored_tokens_as_they_are(hold: str, protocol: str, model: Any) -> None:
    later = spoilt(lambda t: t.keys.mul_(0) if t.seen > 2 * CONTEXT or protocol == "streaming" else None)
    with pytest.raises(MethodError, match="changed the tokens"):
        scores_of(Scored(by=later, decode=hold, interval=4), runner(model, protocol))


def test_a_view_that_was_given_other_tensors_is_changed_too(model: Any) -> None:
    class Replacing(DenseLayer):
        def compress(self, prompt: TokenView) -> None:
            super().compress(prompt)
            prompt.keys = prompt.keys * 0

    @dataclass(frozen=True)
    class Replaced(Method):
        name: ClassVar[str] = "replaced"

        def layer(self, context: LayerContext) -> LayerCache:
            return Replacing(context)

    walk = runner(model)
    prompt = walk.prefill(tokens()[:, :CONTEXT], Replaced().needs)
    with pytest.raises(MethodError, match="changed the prompt"):
        walk.compress(Replaced(), prompt)
    assert prompt.untouched()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [5, 16])
def test_marks_tell_any_change(dtype: torch.dtype, width: int, model: Any) -> None:
    prompt = runner(model).prefill(tokens()[:, :CONTEXT], Scored().needs)
    view = prompt.views[0]
    view.keys = torch.randn(1, 2, 33, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = marks([view])
    assert same(before, marks([view]))
    view.keys[0, 1, 20, 2] *= 1.01
    assert not same(before, marks([view]))


class Breaking(DenseLayer):
    """Attention that is not finite, or of another shape."""

    how: ClassVar[Callable[[Tensor], Tensor]]

    def attend(self, q: Tensor) -> Tensor:
        return type(self).how(super().attend(q))


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda out: out * float("nan"), FloatingPointError),
        (lambda out: out + float("inf"), FloatingPointError),
        (lambda out: out.sum(1, keepdim=True), MethodError),
        (lambda out: out.transpose(1, 2), MethodError),
    ],
)
@pytest.mark.parametrize("protocol", ["prefill", "streaming"])
def test_attention_is_finite_and_in_shape(how: Callable[[Tensor], Tensor], error: type[Exception], protocol: str, model: Any) -> None:
    @dataclass(frozen=True)
    class Broken(Method):
        name: ClassVar[str] = "broken"

        def layer(self, context: LayerContext) -> LayerCache:
            return type("Own", (Breaking,), {"how": staticmethod(how)})(context)  # type: ignore[no-any-return]

    with pytest.raises(error):
        scores_of(Broken(), runner(model, protocol))


@pytest.mark.parametrize("by", [BROKEN["all NaN"], BROKEN["too few"], spoilt(CHANGES["keys zeroed"])])
def test_verify_finds_each(by: Score) -> None:
    found = conformance(Scored(by=by), "llama", Sizes(context=70, continuation=9))
    failed = {check.name: check.detail for check in found if not check.passed}
    assert failed["block = token by token, prefill (llama)"]
    assert any("scores" in detail or "changed the prompt" in detail for detail in failed.values())


def test_verify_finds_tokens_kept_twice_while_decoding() -> None:
    """A layer that evicts in its own way: nothing stands between it and its buffers."""

    class Twice(EvictedLayer):
        def settle(self) -> None:
            if self.positions is not None and self.keys_store.length > 40:
                index = torch.tensor([0, *range(39)]).expand(*self.positions.view().shape[:2], -1)
                for holder in (self.keys_store, self.values_store, self.positions):
                    holder.keep(index)

    @dataclass(frozen=True)
    class Doubling(Scored):
        def layer(self, context: LayerContext) -> LayerCache:
            return Twice(context, self)

    found = conformance(Doubling(decode="hold"), "llama", Sizes(context=70, continuation=15))
    check = next(c for c in found if c.name.startswith("kept tokens"))
    assert not check.passed
    assert "twice" in check.detail


def test_an_index_of_no_tokens_is_none() -> None:
    assert checked_index(torch.empty(1, 2, 0, dtype=torch.long), 5).numel() == 0


def test_a_token_named_twice_is_found_wherever_the_two_stand() -> None:
    with pytest.raises(MethodError, match="twice"):
        checked_index(torch.tensor([[[3, 1, 3]]]), 5)
    apart = torch.tensor([[[3, 1], [1, 3]]])
    assert checked_index(apart, 5) is apart, "heads may keep the same tokens"
