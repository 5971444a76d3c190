"""Tasks of EleutherAI's lm-evaluation-harness, answered by the model's engine.

The harness makes the prompts and judges the answers. This module asks the model as in a chat: the prompt is one user
message in the model's own chat template. A likelihood is that of a complete assistant answer with its end-of-turn token
and without its first space. Most published figures use raw prompts without a template and continuations without an
end: do not compare them with these. Tasks that need the likelihood of a text without a question
(`loglikelihood_rolling`) are refused.

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
from training.evaluation.run_suite import Answer, answers_file, collect_answers
from training.evaluation.suites import Measure, Record, Result

MAX_TOKENS = 256  # of an answer if the task sets no limit: the harness's own default


class EngineModel(LM):
    """A model in the harness's interface. Its answers are saved in `path`."""

    def __init__(self, model: ResolvedModel, path: Path) -> None:
        super().__init__()
        self.model, self.path = model, path

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, each up to the first stop string of its task."""
        return [str(record["answer"]) for record in self._collect(requests, answer)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-likelihood of each answer in nats, and whether it is the greedy answer."""
        records = self._collect(requests, likelihood)
        return [(float(record["log_likelihood"]), bool(record["greedy"])) for record in records]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raises LabError: a chat has no likelihood of a text without a question."""
        raise LabError(
            f"The task {requests[0].task_name} needs the likelihood of texts without a question: choose another task."
        )

    def _collect(self, requests: list[Instance], ask: Answer) -> list[Record]:
        keys = [key(request) for request in requests]
        questions = {name: request.args for name, request in zip(keys, requests, strict=True)}
        found = collect_answers(self.path, self.model, questions, ask, requests[0].task_name or "tasks")
        return [found[name] for name in keys]


def key(request: Instance) -> str:
    """64 bits of SHA-256 of a request."""
    content = json.dumps([request.request_type, request.args], ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def answer(model: ResolvedModel, question: tuple[str, dict], cancelled: Callable[[], bool]) -> Record:
    """A generated answer with the task's settings; greedy by default."""
    context, settings = question
    temperature = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
    length = int(settings.get("max_gen_toks") or MAX_TOKENS)
    text, _ = model.ask([as_message(context)], Sampling(temperature, max_tokens=length, seed=0), cancelled)
    stops = settings.get("until") or []
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop]
    return {"answer": text[: min((end for end in ends if end >= 0), default=len(text))]}


def likelihood(model: ResolvedModel, question: tuple[str, str], cancelled: Callable[[], bool]) -> Record:
    """The likelihood of the continuation as an answer."""
    context, continuation = question
    scored = model.score([as_message(context)], continuation.lstrip())
    return {"log_likelihood": scored.log_likelihood, "greedy": scored.greedy}


def as_message(context: str) -> Message:
    """A raw prompt as a user message."""
    return Message(role="user", content=context)


class Harness:
    """Tasks, loaded once for all models. Raises LabError for an unknown task or if its data are not available."""

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
            raise LabError(f"{', '.join(self.names)} cannot be loaded ({reason}): check the network.") from error
        self.samples = {name: list(range(len(task.eval_docs)))[::every] for name, task in loaded.items()}

    def evaluate(self, model: ResolvedModel, out: Path, again: bool) -> Result:
        """A model's result. `again` discards its saved answers first."""
        path = answers_file(out, model, "tasks")
        if again:
            path.unlink(missing_ok=True)
        found = simple_evaluate(
            EngineModel(model, path), tasks=self.names, samples=self.samples, task_manager=self.manager,
            bootstrap_iters=0,
        )  # fmt: skip
        measures, notes = (
            [],
            ["Tasks: asked in the chat template; likelihoods are those of complete answers (see harness.py)."],
        )
        for task, samples in found["samples"].items():
            for metric, values in values_by_metric(samples).items():
                name, _, kind = metric.partition(",")
                theirs = found["results"][task].get(metric)
                if theirs is None or not math.isclose(theirs, sum(values.values()) / len(values), abs_tol=1e-9):
                    notes.append(f"{task}: {name} is not a mean over questions ({theirs}) and has no interval here.")
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
    """Whether a task is given as a YAML file."""
    return Path(task).suffix in (".yaml", ".yml")


def values_by_metric(samples: Sequence[dict]) -> dict[str, dict[str, bool | float]]:
    """The values of each metric by question, under the harness's names "metric,filter". Metrics of zeros and ones
    become bools."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                found.setdefault(f"{metric},{sample['filter']}", {})[str(sample["doc_id"])] = float(sample[metric])
    return {
        name: {key: bool(value) for key, value in values.items()} if set(values.values()) <= {0.0, 1.0} else values
        for name, values in found.items()
    }
