"""Tasks of EleutherAI's lm-evaluation-harness by name, asked through the engine that serves the model.

The harness makes the prompts and judges the answers; this module answers for it. A model is asked as in a chat: the
prompt is one user message in the model's own chat template, and a likelihood is that of an assistant's whole answer,
its end included and its first space left out. Published figures are mostly of raw prompts without a template and of
continuations without an end: compare these with each other, not with those. Tasks that need the likelihood of a whole
text (`loglikelihood_rolling`) can't be asked in a chat and are refused.

Importing this module takes seconds, so only `--task` does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.validation import nearest
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.run_suite import collect, kept_in
from training.evaluation.suites import Measure, Record, Result

LONGEST = 256  # tokens of an answer where the task says nothing: the harness's own default


class EngineModel(LM):
    """A served model as the harness knows models. `path` keeps what it answers."""

    def __init__(self, served: ResolvedModel, path: Path) -> None:
        super().__init__()
        self.served, self.path = served, path

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, each up to the first of its task's stop strings."""
        return [str(record["answer"]) for record in self._collect(requests, answer)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Nats of each answer, and whether it is the greedy one."""
        records = self._collect(requests, likelihood)
        return [(float(record["log_likelihood"]), bool(record["greedy"])) for record in records]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: a chat has no likelihood of a text without a question."""
        raise LabError(f"The task {requests[0].task_name} asks for the likelihood of whole texts: choose another one.")

    def _collect(self, requests: list[Instance], ask: Callable) -> list[Record]:
        keys = [key(request) for request in requests]
        questions = {name: request.args for name, request in zip(keys, requests, strict=True)}
        found = collect(self.path, self.served, questions, ask, requests[0].task_name or "tasks")
        return [found[name] for name in keys]


def key(request: Instance) -> str:
    """What is asked of the model, as 64 bits of SHA-256."""
    what = json.dumps([request.request_type, request.args], ensure_ascii=False, default=str)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def answer(served: ResolvedModel, question: tuple[str, dict], cancelled: Callable[[], bool]) -> Record:
    """A generated answer as the task's settings want it: greedy unless it says otherwise."""
    context, settings = question
    temperature = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
    length = int(settings.get("max_gen_toks") or LONGEST)
    text, _ = served.ask([in_chat(context)], Sampling(temperature, max_tokens=length, seed=0), cancelled)
    stops = settings.get("until") or []
    places = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop]
    return {"answer": text[: min((place for place in places if place >= 0), default=len(text))]}


def likelihood(served: ResolvedModel, question: tuple[str, str], cancelled: Callable[[], bool]) -> Record:
    """How likely the continuation is as an answer."""
    context, continuation = question
    scored = served.score([in_chat(context)], continuation.lstrip())
    return {"log_likelihood": scored.log_likelihood, "greedy": scored.greedy}


def in_chat(context: str) -> Message:
    """A raw prompt as a user's message."""
    return Message(role="user", content=context)


class Harness:
    """Tasks, loaded once for all models. Raises LabError for a name that is no task's, or data that can't be had."""

    def __init__(self, tasks: Sequence[str], every: int = 1) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.manager = TaskManager(include_path=[str(Path(t).parent) for t in tasks if is_file(t)] or None)
        self.names = [Path(task).stem if is_file(task) else task for task in tasks]
        for name in self.names:
            if name not in self.manager.all_tasks:
                near = nearest(name, self.manager.all_tasks)
                raise LabError(f"lm-evaluation-harness has no task “{name}”{near}: `lm_eval ls tasks` lists them.")
        try:
            loaded = self.manager.load(self.names)["tasks"]
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise LabError(f"{', '.join(self.names)} can't be loaded ({reason}): check the network.") from error
        self.samples = {name: list(range(len(task.eval_docs)))[::every] for name, task in loaded.items()}

    def evaluate(self, served: ResolvedModel, out: Path, again: bool) -> Result:
        """What a model answers to the tasks."""
        path = kept_in(out, served, "tasks")
        if again:
            path.unlink(missing_ok=True)
        found = simple_evaluate(
            EngineModel(served, path), tasks=self.names, samples=self.samples, task_manager=self.manager,
            bootstrap_iters=0,
        )  # fmt: skip
        measures, notes = [], ["Tasks: asked through the chat template, likelihoods of whole answers (harness.py)."]
        for task, samples in found["samples"].items():
            for metric, values in columns(samples).items():
                name, _, kind = metric.partition(",")
                theirs = found["results"][task].get(metric)
                if theirs is None or not math.isclose(theirs, sum(values.values()) / len(values), abs_tol=1e-9):
                    notes.append(f"{task}: {name} is no mean over questions ({theirs}); it has no interval here.")
                    continue
                shown = name if kind == "none" else f"{name} ({kind})"
                measures.append(Measure(
                    "tasks", task, shown, "score", values, panel=f"tasks, {shown}", bar=task
                ))  # fmt: skip
        answers = [
            {"question": str(s["arguments"]), "expected": s["target"], "answer": s["filtered_resps"], "group": task}
            for task, samples in found["samples"].items()
            for s in samples
        ]
        return Result(measures, json.loads(json.dumps(answers, default=str)), notes)


def is_file(task: str) -> bool:
    """Whether a task is given by its YAML file."""
    return Path(task).suffix in (".yaml", ".yml")


def columns(samples: Sequence[dict]) -> dict[str, dict[str, bool | float]]:
    """Each metric's value by question, as "metric,filter" like the harness names its results; 0 and 1 are wrong and
    right."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                found.setdefault(f"{metric},{sample['filter']}", {})[str(sample["doc_id"])] = float(sample[metric])
    return {
        name: {key: bool(value) for key, value in values.items()} if set(values.values()) <= {0.0, 1.0} else values
        for name, values in found.items()
    }
