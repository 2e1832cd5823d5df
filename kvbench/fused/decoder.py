"""Greedy decoding over fused storage: a step that never waits for the host, replayed as a CUDA graph where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from kvbench.caches.cache import decoder_of
from kvbench.errors import UnsupportedModel, UsageError
from kvbench.fused.generic import GenericStep
from kvbench.fused.graph import Graphs, HostSync
from kvbench.fused.merged_weights import is_known
from kvbench.fused.native import NativeStep
from kvbench.fused.storage import NotFused
from kvbench.models.shape import check_supported

if TYPE_CHECKING:
    from kvbench.fused.layer import FusedState

Form = Literal["native", "generic"]


class FusedDecoder:
    """Decodes one token per row and step, the most likely one, over a state that :func:`kvbench.fused.layer.fuse` made.

    The first :meth:`start` says how many rows there are; it prepares and captures. A context manager: closing gives the
    graphs' memory back, and lets go of the state.

    Args:
        model: A ``transformers`` causal model on one device.
        state: The compressed prompt; the decoder moves its counter.
        capture: Whether steps are replayed as CUDA graphs; ``None`` is wherever the device and the model's step allow it.
        form: ``native`` computes a known family's layers itself, ``generic`` runs the model's own forward; ``None`` chooses.

    Attributes:
        form: The one that is used.
        tokens_done: Steps since the state was made.
        prepare_s: Seconds for merging weights, timing candidates, compiling and warming up.
        capture_s: Seconds for recording the graphs, apart from that; 0 without capture.
        uncaptured: Why steps are not replayed as graphs; empty where they are, and before the first start.
        flush_s: Seconds of one flush, where that is a graph of its own; ``None`` where none is or will be due.

    Raises:
        UsageError: the state has no room for a token more.
        NotFused: the model lies on several devices, its attention changes with length within the state's reserve, or it does not
            have one fused layer a decoder layer.
    """

    read_path: ClassVar[str] = "fused"

    def __init__(self, model: Any, state: FusedState, *, capture: bool | None = None, form: Form | None = None) -> None:
        self.device = _one_device(model)
        _check(model, state)
        self.form: Form = form or ("native" if is_known(model) else "generic")
        self.prepare_s = self.capture_s = 0.0
        self.flush_s: float | None = None
        self.tokens_done = int(state.counter)
        self._model: Any = model
        self._state: FusedState | None = state
        self.uncaptured = ""
        self._capture = capture
        self._ready: _Ready | None = None

    @torch.inference_mode()
    def start(self, first: Tensor) -> None:
        """Say which token comes next. The first call prepares and captures; later ones do not wait for the device.

        Args:
            first: The token itself, ``[B]``, or the logits that predict it, ``[B, vocabulary]``.

        Raises:
            NotFused: capture was asked for, and the model's step cannot be captured. The state's counter is as it was.
            UsageError: another number of rows than at the first call, or closed.
        """
        if self._state is None:
            raise UsageError("a closed decoder cannot start", hint="make another one of a freshly compressed cache")
        token = first.argmax(-1) if first.ndim == 2 else first
        if self._ready is None:
            self._ready = self._prepare(self._model, self._state, len(token))
        if len(token) != self._ready.rows:
            text = f"this decoder was made for {self._ready.rows} rows and is given {len(token)}"
            raise UsageError(text, hint="make one for each batch size")
        self._ready.token.copy_(token)

    @torch.inference_mode()
    def steps(self, n: int) -> Tensor:
        """The next ``n`` greedy tokens of each row, ``[B, n]`` on the device; the host only launches and does not wait.

        Each comes of a step that was fed the one before it, the first of what :meth:`start` was given. The tensor is a
        view of what the steps wrote, and stays as it is.

        Raises:
            UsageError: not started, closed, or no room for ``n`` more tokens.
        """
        ready, state = self._ready, self._state
        if ready is None or state is None:
            text = "a decoder that was not started, or is closed, cannot decode"
            raise UsageError(text, hint="call start() with the prompt's last logits")
        done = self.tokens_done
        if done + n > state.reserve:
            text = f"{n} steps were asked for and there is room for {state.reserve - done}"
            raise UsageError(text, hint="fuse the cache with a larger reserve")
        for _ in range(n):
            ready.step()
            self.tokens_done += 1
            if state.every is not None and (state.phase + self.tokens_done) % state.every == 0:
                ready.flush()
        return ready.tokens[:, done : done + n]

    def close(self) -> None:
        """Let go of the graphs, the model, the state and every tensor made for them; twice is as good as once."""
        graphs = None if self._ready is None else self._ready.graphs
        self._ready = self._state = self._model = None
        if graphs is not None:
            graphs.close()

    def __enter__(self) -> FusedDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _prepare(self, model: Any, state: FusedState, rows: int) -> _Ready:
        """Merge, time candidates and warm up; then record."""
        started = self._now()
        forward = NativeStep(model, state, rows) if self.form == "native" else GenericStep(model, state)
        token = torch.zeros(rows, dtype=torch.long, device=self.device)
        tokens = torch.zeros(rows, state.reserve, dtype=torch.long, device=self.device)
        step = partial(_step, forward, state, token, tokens)
        ready = _Ready(rows, token, tokens, (step, state.flush), step, state.flush)
        if self._capture or (self._capture is None and _has_graphs(self.device)):
            self._try_to_record(ready, state)
        else:
            self.uncaptured = "not asked for" if self._capture is False else f"the device is a {self.device.type}"
        self.prepare_s = self._now() - started - self.capture_s
        return ready

    def _try_to_record(self, ready: _Ready, state: FusedState) -> None:
        """Record the step; one that waits for the device goes on without, unless capture was asked for."""
        graphs = Graphs(self.device)
        try:
            self._record(ready, graphs, state)
            ready.graphs = graphs
        except BaseException as error:
            graphs.close()
            ready.step, ready.flush = ready.works
            if not isinstance(error, HostSync):
                raise
            self.uncaptured = f"a step of this model cannot be captured: {error}"
            if self._capture:
                raise NotFused(self.uncaptured) from error
        finally:
            state.counter.fill_(self.tokens_done)

    def _record(self, ready: _Ready, graphs: Graphs, state: FusedState) -> None:
        """Warm up and record the step, and the flush if one will be due.

        Warming up runs for real: it moves the counter, and stores the keys and values of token 0 where the next token's will be.
        The counter is put back after each run. What was stored needs no undoing: a layer writes by the counter, so the
        first true step writes the same slots again before anything reads them. In the same way a flush packs the tokens that
        the counter says are due, so it is tried at the count at which the first true one will come: what it packs then,
        slots that are not filled yet, lies where nothing reads before that true flush has written it anew.
        """
        count, due = self.tokens_done, self._first_flush(state)
        graphs.warm_up(ready.step, partial(state.counter.fill_, count))
        if due is not None:
            state.counter.fill_(due)
            graphs.warm_up(ready.flush, partial(state.counter.fill_, due))
        started = self._now()
        ready.step = graphs.record(ready.step)
        if due is not None:
            ready.flush = graphs.record(ready.flush)
        self.capture_s = self._now() - started
        if due is not None:
            self.flush_s = self._seconds(ready.flush)

    def _first_flush(self, state: FusedState) -> int | None:
        """The count at which the next flush is due, if there is room to get there."""
        if state.every is None:
            return None
        due = ((state.phase + self.tokens_done) // state.every + 1) * state.every - state.phase
        return due if due <= state.reserve else None

    def _seconds(self, work: Callable[[], object], times: int = 8) -> float:
        """Mean seconds of ``work``, which may be run again and again."""
        started = self._now()
        for _ in range(times):
            work()
        return (self._now() - started) / times

    def _now(self) -> float:
        """The clock, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class _Ready:
    """What steps run on: fixed tensors that every step reads and writes, and what runs one.

    Attributes:
        token: ``[rows]``, fed next. tokens: ``[rows, reserve]``, found so far.
        works: What ``step`` and ``flush`` run, or are recordings of. A graph knows addresses, not tensors: what it reads and
            writes (folded weights, scratch) lives as long as the functions that were recorded.
        step, flush: Run one each; replays where ``graphs`` holds them.
    """

    rows: int
    token: Tensor
    tokens: Tensor
    works: tuple[Callable[[], object], Callable[[], object]]
    step: Callable[[], object]
    flush: Callable[[], object]
    graphs: Graphs | None = None


def _step(forward: Callable[[Tensor, Tensor], Tensor], state: FusedState, token: Tensor, tokens: Tensor) -> None:
    """One greedy step, on the device alone: the token gives way to its successor, which is noted, and the counter moves."""
    count = state.counter.long()
    torch.argmax(forward(token, count), -1, out=token)
    tokens.index_copy_(1, count, token[:, None])
    state.counter.add_(1)


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _one_device(model: Any) -> torch.device:
    devices: set[torch.device] = {p.device for p in model.parameters()}
    if len(devices) != 1 or any(device.type == "meta" for device in devices):
        raise NotFused(f"the model lies on {', '.join(sorted(map(str, devices)))}, and a step is captured on one device")
    return devices.pop()


def _check(model: Any, state: FusedState) -> None:
    """Refuse a model of another size than the state, or one that attends otherwise once the reserve is used."""
    if int(state.counter) >= state.reserve:
        raise UsageError(f"there is room for {state.reserve} tokens and none is left", hint="fuse the cache with a larger reserve")
    layers = len(decoder_of(model).layers)
    if layers != len(state.layers):
        raise NotFused(f"the model has {layers} layers and the cache {len(state.layers)}")
    try:
        check_supported(model.config.get_text_config(), state.seen + state.reserve)
    except UnsupportedModel as error:
        raise NotFused(error.message) from error
