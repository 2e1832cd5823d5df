"""What others' code raises or gives that no line of a journal can hold: a row's failure, told where it happened, and no hole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from kvbench.cli import main
from kvbench.engine import pipe
from kvbench.engine.pipe import Receiver, Sender
from kvbench.engine.telling import Context
from kvbench.errors import TOLD_MOST, ResultError, told
from kvbench.record import events as ev
from kvbench.record.unreadable import figures_of
from kvbench.spec import Unit

MARK = "beefbeefbeefbeef"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it cannot say")


@pytest.fixture
def spoken() -> Iterator[tuple[Context, Callable[[], tuple[list[ev.Event], bool]]]]:
    """A unit's context over a real pipe, and what its supervisor has heard so far, torn or not."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    receiver, heard = Receiver(MARK), list[ev.Event]()

    def hear() -> tuple[list[ev.Event], bool]:
        with suppress(BlockingIOError):
            heard.extend(receiver.feed(os.read(read, 1 << 20)))
        return heard, receiver.is_torn

    context = Context(Unit("mine/0", "mine", 0, ("baseline", "m", "n"), 1), Sender(write, MARK).send, set())
    yield context, hear
    os.close(read)
    os.close(write)


UNWRITABLE: dict[str, Any] = {
    "a set": {"a": {1}}, "an object": {"a": object()}, "bytes": {"a": b"x"}, "half a pair": {"a": "\ud800"}, "a number as key": {1: 2},
    "too great a number": {"a": 10**40}, "no mapping": None, "too much": {"a": "x" * 4096},
}  # fmt: skip


@pytest.mark.parametrize("what", UNWRITABLE)
def test_a_record_that_cannot_be_written_is_its_rows_failure(what: str, spoken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, hear = spoken
    monkeypatch.setattr(pipe, "EVENT_MOST", 1024)
    assert not context.guard("m", lambda: context.record("m", "0", UNWRITABLE[what]))
    assert context.guard("n", lambda: context.record("n", "0", {"a": 1}))
    (failed, made), is_torn = hear()
    assert not is_torn
    assert isinstance(failed, ev.MethodFailed)
    assert failed.method == "m"
    assert isinstance(made, ev.RecordMade)
    assert (made.method, made.data) == ("n", {"a": 1})


def test_a_records_key_is_a_text(spoken: Any) -> None:
    context, hear = spoken
    assert not context.guard("m", lambda: context.record("m", 3, {}))
    assert context.guard("n", lambda: context.record("n", "3", {}))
    assert not hear()[1]


def test_a_record_that_its_evaluators_reader_would_refuse_is_never_written(spoken: Any) -> None:
    context, hear = spoken
    context._unit = Unit("needle/0", "needle", 0, ("m",), 1)
    assert not context.guard("m", lambda: context.record("m", "0", {"answer": "x", "exact": 3.0}))
    ((failed,), _) = hear()
    assert isinstance(failed, ev.MethodFailed)
    assert "needle" in failed.error


ERRORS: dict[str, BaseException] = {
    "half a pair": RuntimeError("\ud800 half"), "much": RuntimeError("y" * (20 << 20)), "mute": Mute(), "exit": SystemExit(3),
    "cancel": KeyboardInterrupt(), "base": BaseException("base"), "empty": RuntimeError(""), "lines": RuntimeError("\n\n one\ntwo"),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_whatever_a_method_raises_is_its_rows_failure(what: str, spoken: Any) -> None:
    context, hear = spoken

    def fail() -> None:
        raise ERRORS[what]

    assert not context.guard("m", fail)
    assert context.guard("n", lambda: context.record("n", "0", {"a": 1}))
    (failed, _), is_torn = hear()
    assert not is_torn
    assert isinstance(failed, ev.MethodFailed)
    assert failed.kind == type(ERRORS[what]).__name__
    assert len(failed.error) < TOLD_MOST + 100
    assert "\n" not in failed.error


def test_what_is_told_is_one_short_line() -> None:
    assert [told(ERRORS[name]) for name in ("half a pair", "mute", "empty", "lines")] == [
        "\ufffd half", "no message can be had of it", "", "one",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [SystemExit(1), Mute(), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_no_code_but_kvbenchs_own_is_returned(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr("kvbench.cli.list_names.put", fail)
    assert main(["list", "methods"]) == 70
    assert f"unexpected {type(error).__name__}" in capsys.readouterr().err


def test_what_a_file_asks_for_and_cannot_be_had_is_told_with_the_file() -> None:
    from kvbench.errors import UsageError

    with pytest.raises(ResultError, match=r"result\.json: no such evaluator"), figures_of("result.json"):
        raise UsageError("no such evaluator")
    with pytest.raises(ResultError, match="SystemExit"), figures_of("result.json"):
        raise SystemExit(3)
