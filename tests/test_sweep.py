"""Sweeps: checks before training, kill and resume, parallel workers, and the report."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from conftest import assert_refused, command
from processes import Forked

from inference.errors import LabError
from training.data.emoji.questions import questions, selection_questions
from training.evaluation.statistics import newcombe
from training.evaluation.suites.emoji_suite import group
from training.recipe import load_recipe, recipe_names
from training.sweeps.design import GROUPS, LOSS, SWEEPS, load_sweep
from training.sweeps.runner import check_all_finished, run_trial
from training.sweeps.schedule import claim_run, failure_reasons, open_study, queue_missing_runs, try_lock
from training.sweeps.sweep_report import field_chart, write_report
from training.sweeps.sweep_summary import Point, Run, effects, pareto_front
from training.sweeps.trial import PruningCallback

pytestmark = pytest.mark.xdist_group("sweep")

OVERRIDES = {
    "data.examples": 32,
    "data.evaluation": 4,
    "data.validation": 4,
    "validation.steps": 0,
    "report_to": "[tensorboard]",
    "batch_size": 4,
    "checkpoints.steps": 2,
}
TINY = {"name": "tiny", "recipe": "finetome-nano", "overrides": OVERRIDES, "fields": {"lora.r": [4, 2]}}


def write_sweep(folder: Path, **fields: object) -> str:
    """Write a sweep's file and return its path; None removes a field."""
    path = folder / "tiny.yaml"
    kept = {key: value for key, value in (TINY | fields).items() if value is not None}
    path.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return str(path)


def complete_checkpoints(folder: Path) -> set[str]:
    """The complete checkpoints of all runs."""
    return {path.parent.name for path in folder.glob("tiny_*/checkpoints/checkpoint-*/complete.json")}


def test_a_killed_sweep_resumes_with_two_workers_and_reports(tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy"
    arguments = ["sweep", write_sweep(tmp_path), "--out", str(out)]
    first = Forked("-m", "training", *arguments)
    while not complete_checkpoints(out):
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()  # kills the command only; its worker ends with it
    first.wait()
    killed = open_study(load_sweep(arguments[1]), out)
    (running,) = killed.get_trials(states=[optuna.trial.TrialState.RUNNING])
    while (lock := try_lock(out, running.user_attrs["run"])) is None:
        time.sleep(0.02)
    lock.close()
    assert not list(out.glob("*/run.json"))  # it died before its end

    done = command("training", *arguments, "--workers", "2", "--report", str(copy))
    assert done.returncode == 0, done.stderr
    report = (out / "report.md").read_text("utf-8")
    assert "Finished runs: 2; resumed after their worker was killed: 1." in report
    assert re.search(r"\| 4 \| 0 \| 8 \| .* \| resumed from step [246] \|", report)
    assert re.search(r"\| lora.r 4 → 2 \| 1 \| [+-]\d.* to ", report) and "on the Pareto front" in report
    assert (copy / "report.md").read_text("utf-8") == report
    for picture in ("time.png", "effects.png"):
        assert (copy / picture).read_bytes().startswith(b"\x89PNG") and f"]({picture})" in report
    trials = open_study(load_sweep(arguments[1]), out).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    started = sorted(trial.datetime_start for trial in trials)
    assert started[1] < min(trial.datetime_complete for trial in trials)  # in parallel

    again = command("training", *arguments)
    assert again.returncode == 0 and (out / "report.md").read_text("utf-8") == report
    assert "step/s" not in again.stderr  # nothing was trained


def run_in_process(path: str, folder: Path) -> tuple[optuna.Study, str]:
    """Run the sweep with this process as its worker. Returns its study and report."""
    folder.mkdir(exist_ok=True)
    design = load_sweep(path)
    study = open_study(design, folder)
    queue_missing_runs(study, design, folder)
    while run := claim_run(study, design, folder):
        with run.lock:
            run_trial(study, run, design, folder / run.recipe.name)
    return study, write_report(design, study, failure_reasons(study), folder).read_text("utf-8")


def test_values_of_a_range_are_chosen_and_importance_is_reported(tmp_path):
    fields = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "lora.r": [4, 2]}
    overrides = OVERRIDES | {"max_steps": 2, "data.examples": 8, "warmup_steps": 0}
    study, report = run_in_process(
        write_sweep(tmp_path, fields=fields, trials=10, overrides=overrides), tmp_path / "out"
    )
    assert (
        "Finished runs: 10." in report and "PED-ANOVA" in report and re.search(r"\| learning_rate \| [01]\.\d", report)
    )
    rates = {trial.params["learning_rate"] for trial in study.get_trials()}
    assert len(rates) == 10 and all(1e-4 <= rate <= 1e-2 for rate in rates)


@pytest.mark.parametrize("objective", [LOSS, *GROUPS])
def test_a_sweep_on_each_objective_runs_to_its_end(tmp_path, objective):
    overrides = OVERRIDES | {"max_steps": 2, "data.examples": 8, "warmup_steps": 0}
    path = write_sweep(
        tmp_path, recipe="emoji-nano", overrides=overrides, fields={"lora.r": [2]}, objective=objective, every=100
    )
    study, report = run_in_process(path, tmp_path / "out")
    assert f"Finished runs: 1. The objective is {objective} (" in report
    (trial,) = study.get_trials()
    asked = {LOSS} if objective == LOSS else {LOSS, *GROUPS}
    assert set(trial.user_attrs["measured"]["values"]) == asked and trial.value >= 0


@pytest.mark.parametrize(("objective", "sign"), [("held-out loss", 1.0), ("flags", -1.0)])
def test_a_run_above_the_median_is_pruned(tmp_path, objective, sign):
    study = open_study(load_sweep(write_sweep(tmp_path, pruning="on", objective=objective)), tmp_path)

    def log(loss: float) -> optuna.Trial:
        trial = study.ask()
        PruningCallback(trial, sign).on_log(
            None, SimpleNamespace(global_step=5, max_steps=10), None, logs={"loss": loss}
        )
        return trial

    for loss in (1.0, 1.1, 1.2, 1.3, 1.4):
        study.tell(log(loss), 0.5)
    study.tell(log(1.1), 0.5)
    with pytest.raises(optuna.TrialPruned):
        log(1.3)


def test_two_processes_never_claim_the_same_run_and_that_of_a_dead_one_is_queued_again(tmp_path):
    design = load_sweep(write_sweep(tmp_path, seeds=2))
    study = open_study(design, tmp_path)
    queue_missing_runs(study, design, tmp_path)
    queue_missing_runs(study, design, tmp_path)  # a second command finds all runs queued
    claimed = [claim_run(study, design, tmp_path) for _ in range(4)]
    assert len({recipe.name for _, recipe, _ in claimed}) == 4 and claim_run(study, design, tmp_path) is None
    queue_missing_runs(study, design, tmp_path)
    assert claim_run(study, design, tmp_path) is None  # all have a worker
    claimed[2][2].close()
    queue_missing_runs(study, design, tmp_path)
    _, recipe, lock = claim_run(study, design, tmp_path)
    assert recipe == claimed[2][1] and claim_run(study, design, tmp_path) is None
    lock.close()


def test_two_processes_choose_different_values_of_a_range(tmp_path):
    design = load_sweep(write_sweep(tmp_path, fields={"learning_rate": {"low": 1e-4, "high": 1e-2}}, trials=4))
    studies = [open_study(design, tmp_path) for _ in range(2)]
    claimed = [claim_run(study, design, tmp_path) for study in studies * 2]
    assert (
        len({recipe.learning_rate for _, recipe, _ in claimed}) == 4 and claim_run(studies[0], design, tmp_path) is None
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"feilds": {}}, "tiny.yaml: “feilds” is not a field (did you mean “fields”?)"),
        ({"fields": {"lora.rr": [8]}}, "tiny: finetome-nano.yaml: “lora.rr” is not a field (did you mean “r”?)"),
        ({"fields": {"pakcing": [True]}}, "“pakcing” is not a field (did you mean “packing”?)"),
        ({"fields": {"lora.r": [8, -1]}}, "finetome-nano.yaml: “lora.r” can't be -1: input should be greater than 0"),
        ({"fields": {"warmup_steps": [0.1, 2.5]}}, "“warmup_steps” can't be 2.5: it is a number of steps, or a share"),
        ({"fields": {"lora.r": []}}, "“fields.lora.r” needs one or more different values: it has []"),
        ({"fields": {"lora.r": [8, 8]}}, "“fields.lora.r” needs one or more different values: it has [8, 8]"),
        ({"fields": None}, "the sweep is empty: name fields with their values, or points"),
        ({"recipe": "finetome-nanu"}, "There is no recipe “finetome-nanu” (did you mean “finetome-nano”?)"),
        ({"recipe": None}, "“recipe” is missing: add it"),
        ({"objective": "flag"}, "“objective” can't be 'flag'"),
        ({"fields": {"epochs": {"low": 2, "high": 1}}}, "low 2 is not below high 1"),
        ({"fields": {"epochs": {"low": 1, "hihg": 2}}}, "“fields.epochs”: “hihg” is not a field (did you"),
        ({"fields": {"epochs": {"low": 1.0, "high": 2.0}}}, "“trials” is the number of runs if a field is a range"),
        ({"seeds": 2, "fields": {"seed": [1, 2]}}, "“seeds” repeats the points of a grid"),
        ({"overrides": {"data.validation": 0}}, "on a validation split of its own, and there is none: add data.valid"),
        ({"points": {"study": {"lora.q": 8}}}, "“lora.q” is not a field"),
    ],
)  # fmt: skip
def test_an_invalid_sweep_is_refused_in_one_sentence(tmp_path, fields, words):
    with pytest.raises(LabError, match=re.escape(words)):
        load_sweep(write_sweep(tmp_path, **fields))


def test_the_command_reports_problems_without_a_traceback(tmp_path):
    assert_refused(command("training", "sweep", "study-nanu"), "no sweep “study-nanu” (did you mean “study-nano”?)")
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.db").write_bytes(b"no database " * 100)
    done = command("training", "sweep", write_sweep(tmp_path), "--out", str(out))
    assert_refused(done, "study.db is not readable (", "move it away")
    (out / "study.db").unlink()
    open_study(load_sweep(write_sweep(tmp_path)), out)
    changed = command("training", "sweep", write_sweep(tmp_path, objective="flags"), "--out", str(out))
    assert_refused(changed, "holds another sweep (objective: held-out loss → flags)")


def test_a_failed_run_is_reported_and_the_others_are_finished(tmp_path):
    """A file at the path of one run's folder makes this run fail."""
    out = tmp_path / "out"
    path = write_sweep(tmp_path, overrides=OVERRIDES | {"max_steps": 2})
    in_the_way = out / load_sweep(path).recipe_of({"lora.r": 4, "seed": 0}).name
    out.mkdir()
    in_the_way.write_text("mine", encoding="utf-8")
    study, report = run_in_process(path, out)
    assert "Finished runs: 1." in report and re.search(r"Failed: .*can't be written", report)
    with pytest.raises(LabError, match="Runs that failed: 1. The first error: .*can't be written .* again"):
        check_all_finished(study, [])
    in_the_way.unlink()
    study, report = run_in_process(path, out)  # the same command, later
    assert "Finished runs: 2." in report and "Failed" not in report
    check_all_finished(study, [])


def test_named_points_are_combined_with_fields_and_seeds(tmp_path):
    points = {"first": {"lora.r": 16, "packing": False}, "second": {"lora.r": 8, "packing": True}}
    design = load_sweep(write_sweep(tmp_path, points=points, fields={"epochs": [1.0, 2.0]}, seeds=2))
    made = [design.recipe_of(chosen) for chosen in design.grid()]
    assert len({recipe.name for recipe in made}) == 8
    assert {(r.lora.r, r.packing, r.epochs, r.seed) for r in made} == {
        (r, packing, epochs, seed) for r, packing in ((16, False), (8, True)) for epochs in (1, 2) for seed in (0, 1)
    }


@pytest.mark.parametrize("name", recipe_names(SWEEPS))
def test_the_shipped_sweeps_are_valid(name):
    design = load_sweep(name)
    assert design.name == name and len(design.grid()) in (5, 8, 16)


@pytest.mark.parametrize("name", recipe_names(SWEEPS))
def test_the_shipped_sweeps_run_to_their_end(name, tmp_path):
    """Two of their runs, a few steps each, on the nano base."""
    fields = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    small = OVERRIDES | {"base": "adapters/nano", "data.name": "emoji", "max_length": 128, "max_steps": 2}
    fields["overrides"] = fields.get("overrides", {}) | small
    fields["fields"] = {key: values[: 2 if number == 0 else 1] for number, (key, values) in
                        enumerate(fields["fields"].items())}  # fmt: skip
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields | {"every": 100, "seeds": 1}), encoding="utf-8")
    study, report = run_in_process(str(path), tmp_path / "out")
    assert "Finished runs: 2." in report and not failure_reasons(study)


def test_a_sweep_asks_no_question_that_evaluate_reports_and_measures_on_the_validation_split(tmp_path):
    reported = {question.text for question in questions()}
    chosen = selection_questions()
    assert not reported & {question.text for question in chosen}
    assert {group(question) for question in chosen} == set(GROUPS)
    other = {q.emoji.text for q in chosen if group(q) == "other emoji"}
    assert not other & {q.emoji.text for q in questions() if group(q) == "other emoji"}
    overrides = OVERRIDES | {"max_steps": 1, "data.examples": 8, "warmup_steps": 0, "data.evaluation": 0}
    path = write_sweep(tmp_path, overrides=overrides, fields={"lora.r": [2]})
    study, _ = run_in_process(path, tmp_path / "out")
    (trial,) = study.get_trials()
    assert len(trial.user_attrs["measured"]["values"][LOSS]) == 4  # no conversation of the evaluation split


def test_warm_up_can_be_a_share_of_the_steps():
    assert load_recipe("finetome-nano", ["warmup_steps=0.1"]).warmup_steps == 0.1
    assert load_recipe("finetome-nano").warmup_steps == 5


def run(chosen: dict, seconds: float, right: int) -> Run:
    """A run with `right` of ten questions answered right."""
    values = {str(number): number < right for number in range(10)}
    return Run(chosen, {"seconds": seconds, "values": {"flags": values, "held-out loss": {"a": 1.0, "b": 2.0}},
                        "weights": {"held-out loss": {"a": 1.0, "b": 1.0}}})  # fmt: skip


def test_an_effect_is_the_mean_over_pairs_that_differ_in_one_field(tmp_path):
    design = load_sweep(write_sweep(tmp_path, fields={"lora.r": [4, 2], "packing": [False, True]}, objective="flags"))
    right = {(4, False): 5, (2, False): 6, (4, True): 8, (2, True): 7}
    runs = [run({"lora.r": r, "packing": p, "seed": 0}, 20 if p else 10, n) for (r, p), n in right.items()]
    r, packing = effects(runs, design)
    assert (
        (r.first, r.second) == (4, 2)
        and (packing.first, packing.second) == (False, True)
        and r.pairs == packing.pairs == 2
    )
    flags = packing.changes["flags"]
    assert r.changes["flags"][0] == pytest.approx(0) and flags[0] == pytest.approx(0.2)
    # Differences 0.3 and 0.1: Student's interval with one degree of freedom, t = 12.706.
    assert flags[1:] == pytest.approx((0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1), abs=1e-3)
    assert packing.seconds == pytest.approx((2, 2, 2))
    r, packing = effects(runs[:3], design)  # one pair each: 5 → 6 and 5 → 8 of the same ten questions
    assert r.pairs == 1 and r.changes["flags"] == pytest.approx((0.1, *newcombe(5, 1, 0, 10)))
    assert packing.changes["flags"] == pytest.approx((0.3, *newcombe(5, 3, 0, 10)))


def test_named_points_have_no_chart_against_a_field(tmp_path):
    design = load_sweep(
        write_sweep(
            tmp_path, fields=None, points={name: {"epochs": n} for name, n in zip("abc", (1.0, 2.0, 4.0), strict=True)}
        )
    )
    points = [Point({"point": name}, [run({"point": name, "seed": 0}, 10, 5)]) for name in "abc"]
    assert field_chart(design, points, tmp_path) == [] and not list(tmp_path.glob("*.png"))


def test_no_point_is_better_in_both_than_one_on_the_pareto_front(tmp_path):
    design = load_sweep(write_sweep(tmp_path, objective="flags"))
    points = [Point({}, [run({}, seconds, n)]) for seconds, n in ((30, 6), (10, 3), (20, 3), (40, 9), (50, 8))]
    assert [point.mean("seconds") for point in pareto_front(points, design)] == [10, 30, 40]
