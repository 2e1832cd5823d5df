"""A question through every method's compressed cache: log-likelihoods of its options, or the text that is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kvbench.harness.encoding import Encoded, Encoder
from kvbench.harness.requests import Question
from kvbench.harness.task_scores import VISIBLE

if TYPE_CHECKING:
    from kvbench.instruments.answers import Choices, Guard
    from kvbench.instruments.context import UnitContext
    from kvbench.instruments.session import Session


@dataclass(frozen=True)
class Reply:
    """One method's answers to one question.

    Attributes:
        answers: What the harness's metrics take: (log-likelihood, whether greedy decoding writes it) of each option, or one text.
        facts: For the record: ``hidden`` (whether a question was kept from compression), ``prompt_tokens``, ``context_tokens``
            (those compressed), ``stored_bytes``, ``baseline_bytes`` (of these; all summed over prompts where options have their
            own), ``cut_tokens``; ``loglikelihoods`` and ``greedy``, or ``text``, ``answer_tokens`` and ``ended``.
    """

    answers: list[Any]
    facts: dict[str, Any]


Record = Callable[[str, str, Reply], None]


def encoded(encoder: Encoder, question: Question, *, most: int = 0) -> list[Encoded]:
    """The prompts of a question as token ids; raises as :class:`Encoder` does."""
    return [encoder.generation(question, most)[0]] if question.generates else encoder.choices(question)


def ask(
    session: Session, encoder: Encoder, question: Question, labels: Sequence[str], context: UnitContext, record: Record,
    *, seen: str, most: int,
) -> None:  # fmt: skip
    """Ask every method that has not failed, and have its reply recorded, which is that method's failure where it fails.

    Args:
        record: Takes a label, what the record's key ends with, and the reply.
        seen: ``hidden`` and ``visible`` as :func:`reply` has it, or ``both`` one after the other.
        most: A cap on generated tokens; 0 is the task's own.
    """
    for hidden in (True, False):
        if seen in ("both", "hidden" if hidden else "visible"):
            alive = [label for label in labels if context.is_alive(label)]
            for label, said in reply(session, encoder, question, alive, context.together(), hidden=hidden, most=most).items():
                context.guard(label, partial(record, label, "" if hidden else VISIBLE, said))


def reply(
    session: Session, encoder: Encoder, question: Question, labels: Sequence[str], guard: Guard, *, hidden: bool, most: int = 0
) -> dict[str, Reply]:
    """Ask every method; one that fails is absent.

    Args:
        hidden: Whether compression must not see the question, where the prompt has a context before it.
        most: A cap on generated tokens; 0 is the task's own.
    """
    if question.generates:
        return _write(session, encoder, question, labels, guard, hidden, most)
    return _choose(session, encoder.choices(question), labels, guard, hidden)


def _write(
    session: Session, encoder: Encoder, question: Question, labels: Sequence[str], guard: Guard, hidden: bool, most: int
) -> dict[str, Reply]:
    from kvbench.instruments.answers import ask_of, generate

    prompt, longest, stops = encoder.generation(question, most)
    cut = ask_of(prompt.ids, prompt.split if hidden else None)
    found = generate(session, cut, labels, guard, max_tokens=longest, stop=encoder.stop(stops))
    said: dict[str, Reply] = {}
    for label, answer in found.items():
        text = encoder.text(answer.tokens, stops)
        counts = {"answer_tokens": len(answer.tokens), "ended": answer.ended}
        said[label] = Reply([text], {**_facts([prompt], [len(cut.context)], [answer], hidden), "text": text, **counts})
    return said


def _choose(session: Session, prompts: Sequence[Encoded], labels: Sequence[str], guard: Guard, hidden: bool) -> dict[str, Reply]:
    from kvbench.instruments.answers import ask_of, choose

    contexts: list[int] = []
    found: dict[str, list[Choices]] = {label: [] for label in labels}
    for prompt in prompts:
        alive = [label for label, of in found.items() if len(of) == len(contexts)]
        if len(prompt.ids) == 1:
            chosen = _without_prompt(session, prompt, alive, guard)
            contexts.append(1)
        else:
            cut = ask_of(prompt.ids, prompt.split if hidden else None)
            chosen = choose(session, cut, prompt.options, alive, guard)
            contexts.append(len(cut.context))
        for label, choices in chosen.items():
            found[label].append(choices)
    return {label: _joined(prompts, contexts, of, hidden) for label, of in found.items() if len(of) == len(prompts)}


def _joined(prompts: Sequence[Encoded], contexts: Sequence[int], choices: Sequence[Choices], hidden: bool) -> Reply:
    """Options back in the question's order."""
    count = sum(len(prompt.places) for prompt in prompts)
    scores: list[float] = [0.0] * count
    greedy: list[bool] = [False] * count
    for prompt, of in zip(prompts, choices, strict=True):
        for place, score, is_greedy in zip(prompt.places, of.loglikelihoods, of.greedy, strict=True):
            scores[place], greedy[place] = score, is_greedy
    facts = {**_facts(prompts, contexts, choices, hidden), "loglikelihoods": scores, "greedy": greedy}
    return Reply(list(zip(scores, greedy, strict=True)), facts)


def _facts(prompts: Sequence[Encoded], contexts: Sequence[int], stored: Sequence[Any], hidden: bool) -> dict[str, Any]:
    cut = sum(prompt.cut for prompt in prompts)
    return {
        "hidden": hidden and any(prompt.split is not None for prompt in prompts),
        "prompt_tokens": sum(len(prompt.ids) for prompt in prompts),
        "context_tokens": sum(contexts),
        "stored_bytes": sum(of.stored_bytes for of in stored),
        "baseline_bytes": sum(of.baseline_bytes for of in stored),
        **({"cut_tokens": cut} if cut else {}),
    }


def _without_prompt(session: Session, prompt: Encoded, labels: Sequence[str], guard: Guard) -> dict[str, Choices]:
    """Options after one token (the harness's stand-in for an empty prompt): nothing is stored to be compressed, so all methods agree."""
    from kvbench.spec import BASELINE

    found: list[Choices] = []
    if labels:
        guard(BASELINE if BASELINE in labels else labels[0], partial(_score_plainly, session, prompt, found))
    return {label: choices for label in labels for choices in found}


def _score_plainly(session: Session, prompt: Encoded, found: list[Choices]) -> None:
    """Append what the uncompressed model makes of the options."""
    import torch

    from kvbench.instruments.answers import Choices
    from kvbench.spec import BASELINE

    runner, scores, greedy = session.runner, [], []
    for option in prompt.options:
        tokens = torch.tensor([[*prompt.ids, *option]], device=session.loaded.device)
        with torch.inference_mode():
            logits = runner.logits(runner.forward(tokens[:, :-1], runner.cache(session.methods[BASELINE])))[0, -len(option) :]
        true = tokens[0, 1:].to(logits.device)
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        scores.append(float(logs.gather(1, true[:, None]).double().sum()))
        greedy.append(bool((logs.argmax(-1) == true).all()))
    size = session.baseline_bytes(len(prompt.ids))
    found.append(Choices(size, size, scores, greedy, [len(option) for option in prompt.options]))
