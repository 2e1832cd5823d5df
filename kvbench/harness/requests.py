"""What a task asks of a model about one document, where the prompt's context ends, and what answers score."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.errors import UsageError
from kvbench.harness.task_loading import Leaf

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

CONTEXT_FIELDS = (
    "context", "passage", "article", "story", "document", "paragraph", "support", "premise", "report", "transcript", "dialogue",
    "conversation", "background", "evidence", "text",
)  # fmt: skip
"""Columns whose text a question is asked about, as the harness's datasets name them."""
GREEDY = ("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Generation settings that greedy decoding follows, or that mean nothing to it."""


@dataclass(frozen=True)
class Question:
    """One document's requests.

    Attributes:
        leaf: Its task. number: The document's place in the scored split. document: It, as the task sees it.
        instances: The harness's requests, in its order: an option each, or one text to generate.
        ends: For each of them, how many characters of its prompt stand before the question; ``None`` if nothing does.
    """

    leaf: Leaf
    number: int
    document: Any
    instances: Sequence[Instance]
    ends: Sequence[int | None]

    @property
    def key(self) -> str:
        return f"{self.leaf.name}/{self.number}"

    @property
    def generates(self) -> bool:
        """Whether it asks for a text, rather than for the likelihoods of options."""
        return bool(self.instances[0].request_type == "generate_until")

    @property
    def prompts(self) -> list[str]:
        return [str(instance.args[0]) for instance in self.instances]

    @property
    def options(self) -> list[str]:
        """What follows each prompt; empty where a text is generated."""
        return [] if self.generates else [str(instance.args[1]) for instance in self.instances]

    @property
    def settings(self) -> dict[str, Any]:
        """How a text is generated; empty where options are scored."""
        return dict(self.instances[0].args[1]) if self.generates else {}


def questions_of(leaf: Leaf) -> list[Question]:
    """The chosen questions of a task, with examples as the harness draws them for just these, in this order.

    Raises:
        UsageError: it generates in a way that kvbench does not.
    """
    leaf.task.set_fewshot_seed(seed=leaf.seed)
    found = [_question(leaf, number, leaf.documents[number]) for number in leaf.chosen]
    for question in found[:1]:
        _check_settings(question)
    return found


def samples_greedily_instead(question: Question) -> bool:
    """Whether the task would have its answers sampled: here they are greedy, and the result says so."""
    settings = question.settings
    return bool(settings.get("do_sample")) and float(settings.get("temperature") or 0.0) > 0.0


def score(question: Question, answers: Sequence[tuple[float, bool]] | Sequence[str]) -> dict[str, Any]:
    """``metric,filter`` → value, by the task's own filters and metrics, as plain data.

    Args:
        answers: One for each instance: (log-likelihood, whether greedy decoding writes the option), or the text.
    """
    task = question.leaf.task
    asked = [copy.copy(instance) for instance in question.instances]
    for instance, answer in zip(asked, answers, strict=True):
        instance.resps, instance.filtered_resps = [answer], {}
    task._instances = asked
    task.apply_filters()
    found: dict[str, Any] = {}
    for name in asked[0].filtered_resps:
        metrics = task.process_results(question.document, [instance.filtered_resps[name] for instance in asked])
        found |= {f"{metric},{name}": plain(value) for metric, value in metrics.items()}
    return found


def rules(leaf: Leaf, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of one document need besides their mean.

    Returns:
        ``aggregation``: ``metric,filter`` → name of the harness's function, where it is not the mean;
        ``lower``: those of which less is better.
    """
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    functions, higher = leaf.task.aggregation(), leaf.task.higher_is_better()
    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    other = {}
    for key in metrics:
        function = functions.get(key.partition(",")[0], mean)
        if function is not mean:
            other[key] = names.get(function) or f"{function.__module__}:{function.__qualname__}"
    lower = [key for key in metrics if higher.get(key.partition(",")[0]) is False]
    return ({"aggregation": other} if other else {}) | ({"lower": lower} if lower else {})


def plain(value: Any) -> Any:
    """Numbers, texts and lists of them, as JSON has them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(of) for of in value]
    if isinstance(value, bool | int | float):
        return float(value)
    return value if value is None or isinstance(value, str) else str(value)


def _question(leaf: Leaf, number: int, document: Any) -> Question:
    """As the harness's ``Task.build_all_requests`` does for one document, without a chat template."""
    task = leaf.task
    prefix = task.doc_to_prefix(document)
    context = task.fewshot_context(document, num_fewshot=leaf.config.num_fewshot or 0, gen_prefix=prefix)
    made = task.construct_requests(
        doc=document, ctx=context, metadata=(leaf.name, number, 1), apply_chat_template=False, chat_template=None
    )
    instances = made if isinstance(made, list) else [made]
    ends = [context_end(leaf, document, str(instance.args[0]), i) for i, instance in enumerate(instances)]
    return Question(leaf, number, document, instances, ends)


def context_end(leaf: Leaf, document: Any, prompt: str, place: int) -> int | None:
    """How many characters of ``prompt`` are context: up to the end of the examples, or of a column that holds a context.

    A task's description alone is no context: it is an instruction, and there is nothing in it to be asked about.

    Args:
        place: Which of the document's requests it is; where each option has its own prompt, its text is the option's.
    """
    asked = _asked(leaf, document, place)
    start = prompt.rfind(asked) if asked else -1
    if start < 0:
        return None
    ends = [start] if start and leaf.config.num_fewshot else []
    for name in CONTEXT_FIELDS:
        text = document.get(name) if isinstance(document, Mapping) else None
        if isinstance(text, str) and text.strip():
            at = prompt.find(text.strip(), start)
            ends += [at + len(text.strip())] if at >= 0 else []
    return max((end for end in ends if prompt[end:].strip()), default=None)


def _asked(leaf: Leaf, document: Any, place: int) -> str:
    """The document's own part of a prompt."""
    text = leaf.task.doc_to_text(document)
    if isinstance(text, str):
        return text
    choices = leaf.task.doc_to_choice(document)
    return str(choices[place]) if place < len(choices) else ""


def _check_settings(question: Question) -> None:
    other = sorted(set(question.settings) - set(GREEDY))
    if other:
        raise UsageError(
            f"task '{question.leaf.name}' generates with {', '.join(other)}; answers here are greedy, so its figures would be others",
            hint="choose another task, or one of its variants without them",
        )
