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

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from lm_eval.models.huggingface import HFLM
from tabulate import tabulate

from kvbench.caches.cache import use_kvbench_attention
from kvbench.engine.plan import resolve_methods
from kvbench.evaluators.base import BASELINE
from kvbench.harness.answering import Reply, reply
from kvbench.harness.encoding import Encoder
from kvbench.harness.loading import load_tasks
from kvbench.harness.requests import Question, questions_of
from kvbench.instruments.session import Session
from kvbench.methods.base import expand
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, EvaluatorSpec, ModelSpec, RunSpec, split_list

GOAL = 4.0
"""All methods together over the harness's backend, at most."""
METHODS = "baseline,random,streaming_llm,knorm,keydiff,tova,snapkv,expected_attention,adakv,int4,kivi,turboquant"  # 12 with the controls
T = TypeVar("T")


def main() -> None:
    given = _arguments()
    bench = Bench(given)
    bench.warm_up()
    for number, question in enumerate(bench.questions):
        bench.ask(question, ours_first=bool(number % 2))
        print(f"question {number + 1} of {len(bench.questions)}", file=sys.stderr)
    bench.report(given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--methods", default=METHODS, help="The controls, baseline and random, are always among them.")
    parser.add_argument("--tasks", default="hellaswag+piqa+arc_challenge+mmlu", help="Tasks of the harness, joined by +.")
    parser.add_argument("--questions", type=int, default=25, help="Of each task.")
    parser.add_argument("--data-dir", default=None, help="Mirror of the data.  [default: KVBENCH_DATA]")
    return parser.parse_args()


class Bench:
    """One model, both ways to ask it."""

    def __init__(self, given: argparse.Namespace) -> None:
        model = ModelSpec(given.model, dtype="float32", device="cpu")
        methods = tuple(expand(split_list(given.methods)))
        spec = RunSpec(
            model=model, methods=methods, evaluators=(EvaluatorSpec("memory"),), corpus=CorpusSpec(data_dir=given.data_dir), samples=1
        )
        self.session = Session.open(spec, resolve_methods(spec), silent)
        loaded = self.session.loaded
        self.encoder = Encoder(loaded.tokenizer, loaded.model.config)
        tasks = load_tasks(given.tasks.split("+"), given.data_dir, questions=given.questions, seed=0, stage=silent)
        self.questions = [q for leaf in tasks.leaves.values() for q in questions_of(leaf) if not q.generates]
        self.backend = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.worst = 0.0

    def warm_up(self) -> None:
        self.ask(self.questions[0], ours_first=False)
        self.seconds.clear()

    def ask(self, question: Question, *, ours_first: bool) -> None:
        """Both sides, in turn; only the asking is timed."""
        if ours_first:
            ours, mine = self._timed("kvbench", lambda: self._ours(question))
            theirs, other = self._timed("sdpa", lambda: self._theirs(question))
        else:
            theirs, other = self._timed("sdpa", lambda: self._theirs(question))
            ours, mine = self._timed("kvbench", lambda: self._ours(question))
        if set(mine) != set(self.session.methods):
            raise RuntimeError(f"no answer from {set(self.session.methods) - set(mine)}")
        self.worst = max([self.worst, *(abs(a - b) for (a, _), (b, _) in zip(mine[BASELINE].answers, other, strict=True))])
        self.seconds[question.leaf.of].append((ours, theirs))

    def _timed(self, attention: str, action: Callable[[], T]) -> tuple[float, T]:
        if attention == "kvbench":
            use_kvbench_attention(self.session.loaded.model)
        else:
            self.session.loaded.model.set_attn_implementation(attention)
        started = time.perf_counter()
        found = action()
        return time.perf_counter() - started, found

    def _ours(self, question: Question) -> dict[str, Reply]:
        def guard(label: str, action: Callable[[], None]) -> bool:
            action()
            return True

        return reply(self.session, self.encoder, question, list(self.session.methods), guard, hidden=True)

    def _theirs(self, question: Question) -> list[Any]:
        return list(self.backend.loglikelihood(list(question.instances), disable_tqdm=True))

    def report(self, given: argparse.Namespace) -> None:
        rows = [(name, len(pairs), *map(sum, zip(*pairs, strict=True))) for name, pairs in self.seconds.items()]
        rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
        headings = ["task", "questions", f"{len(self.session.methods)} methods, s", "harness once, s", "ratio"]
        print(tabulate([(*row, row[2] / row[3]) for row in rows], headings, floatfmt=".2f"))
        print(f"largest difference of a log-likelihood of the baseline: {self.worst:.1e}; goal: ratio ≤ {GOAL:g}")
        facts = {"bench": "choices", "model": given.model, "methods": list(self.session.methods), "goal": GOAL, "worst": self.worst}
        ratios = {
            name: {"questions": count, "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs} for name, count, ours, theirs in rows
        }
        print(json.dumps(facts | {"tasks": ratios}))


if __name__ == "__main__":
    main()
