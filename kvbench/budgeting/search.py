"""The search for a setting: a method's dial is turned, the method built and weighed, until its bytes meet a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvbench.errors import UsageError
from kvbench.methods.method import Method
from kvbench.methods.registered import METHODS, resolve
from kvbench.models.shape import Shape
from kvbench.spec import MethodSpec, ParamValue, RunSpec
from kvbench.spec.budgets import Dial, Range, is_met

Turned = dict[str, ParamValue]
"""Parameters and what they were turned to; those of a composition's store begin with ``+``."""
FINE = 0.001
"""Share of the budget that is near enough to stop searching, and that an estimate may be off."""
STEPS = 40
"""Trials along a continuous range, at most."""
SCANNED = 24
"""Trials along a range on which bytes rise and fall, before the places between them are looked at."""
ROUGH = 0.005
"""The same along such a range, where nearer is a matter of luck."""
DECIMALS = 6
"""Of a turned number: enough for one token in a million, and short enough to be written down."""


@dataclass(frozen=True)
class Trial:
    """A method with its dial turned, and the bytes it stores."""

    turned: Turned
    method: Method
    stored: int


def _dial(spec: MethodSpec) -> tuple[str, Dial | None]:
    """What may still be turned, and the prefix of its parameters' names."""
    for prefix, part in (("", spec), ("+", spec.store)):
        if part is None:
            continue
        cls = METHODS.load(part.name)
        given = [name or cls.parameters()[0][0] for name in part.options]
        left = None if cls.dial is None else cls.dial.without(given)
        if left is not None:
            return prefix, left
    return "", None


class Search:
    """One method's settings, each built and weighed once.

    Args:
        weigh: Method → stored bytes.
    """

    def __init__(self, spec: MethodSpec, run: RunSpec, shape: Shape, target: float, weigh: Callable[[Method], int]) -> None:
        self.spec, self.run, self.shape, self.target, self._weigh = spec, run, shape, target, weigh
        self._trials: dict[tuple[tuple[str, ParamValue], ...], Trial] = {}

    def best(self) -> Trial:
        """The first setting that meets the target, or the nearest to it where none does or none is preferred.

        Raises:
            UsageError: the method does not fit the model, and no setting of its dial does.
        """
        prefix, dial = _dial(self.spec)
        if dial is None:
            return self._as_asked()
        if isinstance(dial, Range):
            return self._along(prefix, dial, {}) or self._as_asked()
        choices = [{prefix + name: value for name, value in choice.items()} for choice in dial.choices]
        if dial.rising:
            return self.bisected(len(choices), choices.__getitem__) or self._as_asked()
        for held in choices:
            found = self.at(held) if dial.fine is None else self._along(prefix, dial.fine, held)
            if found is not None and is_met(found.stored, self.target):
                return found
        return self.nearest(self._trials.values()) if self._trials else self._as_asked()

    def nearest(self, trials: Iterable[Trial]) -> Trial:
        """Of equally near ones the first."""
        return min(trials, key=lambda trial: abs(trial.stored - self.target))

    def at(self, turned: Turned) -> Trial | None:
        """What is stored with these parameters; ``None`` where they are refused."""
        key = tuple(turned.items())
        if key not in self._trials:
            if not self.fits(turned):
                return None
            method = self._method(turned)
            self._trials[key] = Trial(turned, method, self._weigh(method))
        return self._trials[key]

    def bisected(self, count: int, choice: Callable[[int], Turned]) -> Trial | None:
        """The nearest to the target of ``count`` choices that store more and more; ``None`` where every one is refused."""
        low = next((place for place in range(count) if self.at(choice(place))), None)
        if low is None:
            return None
        high = next(place for place in reversed(range(count)) if self.at(choice(place)))
        while (middle := next((place for place in _between(low, high) if self.at(choice(place))), None)) is not None:
            trial = self.at(choice(middle))
            low, high = (low, middle) if trial is None or trial.stored >= self.target else (middle, high)
        return self.nearest([trial for place in (low, high) if (trial := self.at(choice(place))) is not None])

    def fits(self, turned: Turned) -> bool:
        """Whether the parameters go together and with the model."""
        try:
            self._method(turned)
        except (UsageError, ValueError):
            return False
        return True

    def _method(self, turned: Turned) -> Method:
        method = resolve(self.spec, self.run, turned)
        method.check(self.shape)
        return method

    def _as_asked(self) -> Trial:
        """Nothing is turned."""
        try:
            method = self._method({})
        except ValueError as error:
            raise UsageError(f"method '{self.spec.label}': {error}") from error
        return Trial({}, method, self._weigh(method))

    def _along(self, prefix: str, dial: Range, held: Turned) -> Trial | None:
        """The nearest to the target along a range, the ``held`` parameters as they are; ``None`` where all are refused."""
        sizes = {"context": self.run.context, **vars(self.shape)}
        most, least = (float(sizes[end] if isinstance(end, str) else end) for end in (dial.most, dial.least))
        line = Line(self, held, prefix + dial.parameter)
        if not dial.whole:
            return line.between(most, least)
        step = dial.step if isinstance(dial.step, int) else self._value(prefix, dial.step, held)
        step = max(1, step) if least <= most else -max(1, step)
        numbers = range(round(least), round(most) + (1 if step > 0 else -1), step)
        return line.scanned(numbers) if dial.wavy else self.bisected(len(numbers), lambda place: {**held, line.name: numbers[place]})

    def _value(self, prefix: str, name: str, held: Turned) -> int:
        """A whole parameter: as it is held, as the user gave it, or its default."""
        part = self.spec.store if prefix and self.spec.store is not None else self.spec
        default = next(value for known, value, _ in METHODS.load(part.name).parameters() if known == name)
        return int(held.get(prefix + name, part.options.get(name, default)))


def _between(low: int, high: int) -> Iterator[int]:
    """The places strictly between two, from the middle outwards."""
    middle = (low + high) // 2
    for away in range(high - low):
        yield from (place for place in dict.fromkeys((middle - away, middle + away)) if low < place < high)


@dataclass(frozen=True)
class Line:
    """Settings that differ in one number."""

    search: Search
    held: Turned
    name: str

    def at(self, value: float) -> Trial | None:
        return self.search.at({**self.held, self.name: value})

    def fits(self, value: float) -> bool:
        return self.search.fits({**self.held, self.name: value})

    def between(self, most: float, least: float) -> Trial | None:
        """Stored bytes fall from ``most`` to ``least``: interpolation and bisection in turn."""
        most, target = self._drawn_in(most, least), self.search.target
        high, low = self.at(most), self.at(least)
        if high is None or low is None:
            return None
        seen = [high, low]
        for step in range(STEPS):
            if not low.stored < target < high.stored or self._is_near(seen):
                break
            share = 0.5 if step % 2 else (high.stored - target) / (high.stored - low.stored)
            value = round(most + share * (least - most), DECIMALS)
            trial = None if value in (most, least) else self.at(value)
            if trial is None:
                break
            seen.append(trial)
            if trial.stored in (low.stored, high.stored) and is_met(low.stored, target) and is_met(high.stored, target):
                break  # neighbouring counts of tokens: nothing lies between them
            if trial.stored > target:
                most, high = value, trial
            else:
                least, low = value, trial
        return self.search.nearest(seen)

    def _drawn_in(self, most: float, least: float) -> float:
        """``most``, or where the other parameters refuse it the nearest to it that they allow."""
        if self.fits(most):
            return most
        good, bad = least, most
        for _ in range(STEPS):
            middle = round((good + bad) / 2, DECIMALS)
            good, bad = (middle, bad) if self.fits(middle) else (good, middle)
        return good

    def scanned(self, numbers: Sequence[int]) -> Trial | None:
        """Stored bytes rise and fall along ``numbers``; nowhere are they fewer than at the first that is allowed."""
        last = len(numbers) - 1
        places = dict.fromkeys([0, *(round(last ** (at / SCANNED)) for at in range(SCANNED + 1 if last else 0))])
        seen: dict[int, Trial] = {}
        for place in places:
            trial = self.at(numbers[place])
            if trial is not None:
                if not seen and self._is_beyond(trial):
                    return trial
                seen[place] = trial
        for low, high in pairwise(list(seen)):
            if self._is_near(seen.values(), ROUGH):
                break
            self._crossed(numbers, low, high, seen)
        return self.search.nearest(seen.values()) if seen else None

    def _crossed(self, numbers: Sequence[int], low: int, high: int, seen: dict[int, Trial]) -> None:
        """Where stored bytes pass the target between two places, if they do."""
        target = self.search.target
        rises = seen[high].stored > target
        while high - low > 1 and (seen[low].stored > target) != rises and not self._is_near(seen.values(), ROUGH):
            middle = (low + high) // 2
            trial = self.at(numbers[middle])
            if trial is None:
                break
            seen[middle] = trial
            low, high = (low, middle) if (trial.stored > target) == rises else (middle, high)

    def _is_near(self, seen: Iterable[Trial], share: float = FINE) -> bool:
        """Whether searching on is not worth it."""
        return abs(self.search.nearest(seen).stored - self.search.target) <= share * self.search.target

    def _is_beyond(self, fewest: Trial) -> bool:
        return fewest.stored > self.search.target and not is_met(fewest.stored, self.search.target)
