"""What multiple choice through twelve compressed caches costs, over the harness's own backend run once.

lm-evaluation-harness scores a question with a forward of prompt and option for each option. A KV method doubles that, and
twelve methods would be twelve runs. kvbench prefills a prompt once for all methods and options, compresses it by each, and
sends the last prompt token and the options of all methods through the model in one forward, each through its own cache.

Both sides answer the same questions with the same weights in the same process: theirs is ``HFLM`` (batch 1, its defaults)
with the model's own attention and no cache, ours the ``tasks`` evaluator's path with every method. They take turns question
by question, so that a machine that slows down slows both; what a method's calibration takes, once a model, is not counted.
The baseline's log-likelihoods are compared as the clock runs: the times are of the same answers.

    python tests/bench/bench_choices.py --data-dir FOLDER [--questions 25]
    python tests/bench/bench_choices.py --tasks piqa --questions 2 --methods knorm,int8
"""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benching import arguments, closing, in_turn, methods, option, table, talk, timed
from lm_eval.models.huggingface import HFLM
from opening import opened

from kvbench.caches.cache import use_kvbench_attention
from kvbench.harness.encoding import Encoder
from kvbench.harness.replies import Reply, reply
from kvbench.harness.requests import Question, questions_of
from kvbench.harness.task_loading import load_tasks
from kvbench.models.weights import silent
from kvbench.spec import BASELINE, ModelSpec

GOAL = 4.0
"""All methods together over the harness's backend, at most."""
METHODS = "baseline,random,streaming_llm,knorm,keydiff,tova,snapkv,expected_attention,adakv,int4,kivi,turboquant"  # 12 with the controls


def main() -> None:
    given = arguments(
        __doc__, model="embedded:smollm2", methods=methods(METHODS),
        tasks=option("hellaswag+piqa+arc_challenge+mmlu", "Tasks of the harness, joined by +."), questions=option(25, "Of each task."),
        data_dir=option(None, "Mirror of the data.  [default: KVBENCH_DATA]"),
    )  # fmt: skip
    bench = Bench(given)
    bench.ask(bench.questions[0], ours_first=False)  # warms up
    bench.seconds.clear()
    for number, question in enumerate(bench.questions, 1):
        bench.ask(question, ours_first=number % 2 == 0)
        talk(f"question {number} of {len(bench.questions)}")
    bench.report(given)


class Bench:
    """One model, both ways to ask it."""

    def __init__(self, given: Namespace) -> None:
        self.session = opened(ModelSpec(given.model, dtype="float32", device="cpu"), given.methods, samples=1)
        loaded = self.session.loaded
        self.encoder = Encoder(loaded.tokenizer, loaded.model.config)
        tasks = load_tasks(given.tasks.split("+"), given.data_dir, questions=given.questions, seed=0, stage=silent)
        self.questions = [q for leaf in tasks.leaves.values() for q in questions_of(leaf) if not q.generates]
        self.backend = HFLM(pretrained=loaded.model, tokenizer=getattr(loaded.tokenizer, "tokenizer", None), batch_size=1)
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.worst = 0.0

    def ask(self, question: Question, *, ours_first: bool) -> None:
        """Both sides, in turn; only the asking is timed."""
        (mine, ours), (other, theirs) = in_turn(lambda: self._ours(question), lambda: self._theirs(question), other_first=not ours_first)
        if set(mine) != set(self.session.methods):
            raise RuntimeError(f"no answer from {set(self.session.methods) - set(mine)}")
        self.worst = max([self.worst, *(abs(a - b) for (a, _), (b, _) in zip(mine[BASELINE].answers, other, strict=True))])
        self.seconds[question.leaf.of].append((ours, theirs))

    def _ours(self, question: Question) -> tuple[dict[str, Reply], float]:
        def guard(label: str, action: Callable[[], None]) -> bool:
            action()
            return True

        use_kvbench_attention(self.session.loaded.model)
        return timed(lambda: reply(self.session, self.encoder, question, list(self.session.methods), guard, hidden=True))

    def _theirs(self, question: Question) -> tuple[list[Any], float]:
        self.session.loaded.model.set_attn_implementation("sdpa")
        return timed(lambda: list(self.backend.loglikelihood(list(question.instances), disable_tqdm=True)))

    def report(self, given: Namespace) -> None:
        pairs = {**self.seconds, "all": [pair for of in self.seconds.values() for pair in of]}
        found = {name: _ratio(of) for name, of in pairs.items()}
        columns = {"task": "{task}", "questions": "{questions:}", f"{len(self.session.methods)} methods, s": "{ours_s:.2f}"}
        table(({"task": name, **of} for name, of in found.items()), columns | {"harness once, s": "{theirs_s:.2f}", "ratio": "{ratio:.2f}"})
        print(f"largest difference of a log-likelihood of the baseline: {self.worst:.1e}; goal: ratio ≤ {GOAL:g}")
        closing("choices", model=given.model, methods=list(self.session.methods), goal=GOAL, worst=self.worst, tasks=found)


def _ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    ours, theirs = (sum(side) for side in zip(*pairs, strict=True))
    return {"questions": len(pairs), "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs}


if __name__ == "__main__":
    main()
