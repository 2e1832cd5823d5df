"""EleutherAI's lm-evaluation-harness as the source of tasks: names, data, prompts and metrics.

Everything that touches ``lm_eval`` is in this room, and imported inside functions: a plan, ``list``, ``show`` and
``compare`` need neither it nor torch.

``index``     which tasks there are, and what each is made of
``mirrors``   files that stand in for hub datasets
``building``  one task with its data
``loading``   the tasks that a run names, and which of their questions are asked
``requests``  what a task asks of a model: prompts, options, where a prompt's context ends; and what its answers score
``encoding``  prompts as token ids, by the harness's own rules
``answering`` a question through every method's compressed cache
``scores``, ``tables``  what records say, without the harness
"""
