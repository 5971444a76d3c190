"""Evaluation: suites, scoring, saved answers, reports and comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import EMOJI, NANO, assert_refused, command

from inference.catalog import read_card
from inference.errors import LabError
from training.data.emoji.questions import questions
from training.evaluation.evaluate import Evaluation, Request, evaluate_models, write_report
from training.evaluation.evaluation_report import differences
from training.evaluation.resolve_model import ResolvedModel, lab_for, llamacpp_files, resolve_model, weights_revision
from training.evaluation.run_suite import answers_file, collect_answers, run_suite
from training.evaluation.strengths.curve_report import best_text, draw_curves
from training.evaluation.strengths.strength_curve import curve_of, measure_curve, parse_strengths
from training.evaluation.suites import Measure, Result
from training.evaluation.suites.chat_suite import ChatSuite, is_refusal, repetition
from training.evaluation.suites.emoji_suite import EmojiSuite, confusions, judge_answer
from training.recipe import load_recipe

TAUGHT = [q for q in questions() if q.seen]
SWEDEN = next(q for q in questions() if q.kind == "name" and q.emoji.text == "🇸🇪")
FIND = next(q for q in questions() if q.kind == "find" and q.emoji.text == "🇸🇪")


def resolved(engine, folder: Path = EMOJI) -> ResolvedModel:
    """A shipped model on the shared llama.cpp engine."""
    files = llamacpp_files(folder)
    return ResolvedModel(folder.name, "llamacpp", engine, files, weights_revision(files))


class Dying:
    """An engine that fails after a number of answers."""

    def __init__(self, engine, answers: int) -> None:
        self.engine, self.left = engine, answers

    def stream(self, *arguments):
        """As the engine's own."""
        if not self.left:
            raise LabError("nano-Q8_0.gguf failed to compute an answer.")
        self.left -= 1
        return self.engine.stream(*arguments)


def test_exact_needs_the_sentence_or_name_alone_and_lenient_the_name_anywhere():
    scores = {
        given: (row["exact"], row["lenient"])
        for given in ("🇸🇪 is the flag of Sweden.", "Sweden", "It's Sweden's flag, of course", "the flag of Suriname")
        for row in [judge_answer(SWEDEN, given)]
    }
    assert list(scores.values()) == [(True, True), (True, True), (False, True), (False, False)]
    assert judge_answer(FIND, "🇸🇪")["exact"] and judge_answer(FIND, "It is 🇸🇪!")["lenient"]
    assert not judge_answer(FIND, "🇸🇪 or 🇸🇷")["lenient"]


def test_confusions_are_counted_by_what_was_expected_and_given():
    given = ["🇸🇪 is the flag of Suriname.", "suriname", "I don't know that one yet.", "Sweden", "No idea."]
    rows = [judge_answer(SWEDEN, text) for text in given] + [judge_answer(FIND, "The flag of Sweden is 🇸🇷.")]
    assert confusions(rows) == [
        ("Sweden", "Suriname", 3),
        ("Sweden", "no emoji's name", 1),
        ("Sweden", "“I don't know”", 1),
    ]


def test_two_models_are_compared_and_a_repeated_command_asks_nothing(tmp_path):
    arguments = ["training", "evaluate", "nano", "nano-emoji", "--every", "40", "--out", str(tmp_path)]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "nano-emoji − nano" in done.stdout and "McNemar" in done.stdout and "asking nano" in done.stderr
    document = json.loads((tmp_path / "nano-emoji" / "evaluation.json").read_text("utf-8"))
    row = document["suites"]["emoji"]["answers"][0]
    assert {"question", "expected", "answer", "exact", "lenient", "group"} <= set(row)
    assert (tmp_path / "nano-emoji" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    comparison = tmp_path / "nano-and-nano-emoji"
    assert {path.suffix for path in comparison.iterdir()} == {".json", ".md", ".png"}
    flags = next(row for row in json.loads((comparison / "comparison.json").read_text("utf-8"))
                 if (row["group"], row["metric"]) == ("flags", "lenient"))  # fmt: skip
    assert flags["low"] > 0.2 and flags["adjusted"] < 0.05  # the adapter knows flags, the base none
    again = command(*arguments)
    assert again.stdout == done.stdout and "asking" not in again.stderr
    assert "every" not in read_card("", EMOJI, None).accuracy  # a part of the questions is not added to the card


def test_strengths_tell_what_is_learnt_and_forgotten_and_name_the_best(tmp_path, engine):
    asked = [*[q for q in TAUGHT if q.emoji.is_flag][:16], *TAUGHT[:8]]  # the base knows no flag
    curve = measure_curve(EmojiSuite(asked), resolved(engine), parse_strengths("0.5"), tmp_path, 1, False)
    base, half, trained = curve["points"]
    assert [point["strength"] for point in curve["points"]] == [0, 0.5, 1]
    assert base["learnt"]["value"] == 0 and (base["forgotten"] or {"value": 0})["value"] == 0
    assert trained["learnt"]["value"] > 0.3 > half["learnt"]["value"]
    assert best_text(curve) == "Best strength: 1, as it was trained."
    draw_curves({"emoji": curve}, tmp_path / "strengths.png")
    assert (tmp_path / "strengths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LabError, match="use numbers from 0 to 1.5"):
        parse_strengths("0,2")


def test_strengths_of_a_loss_count_conversations_that_become_likelier():
    def result(nats: list[float]) -> Result:
        keys = [str(i) for i in range(len(nats))]
        tokens = dict.fromkeys(keys, 10.0)
        return Result([Measure("chat", "", "loss", "nats per token", dict(zip(keys, nats, strict=True)), tokens)], [])

    curve = curve_of({0.0: result([20, 20, 20, 20]), 0.5: result([9, 9, 9, 21]), 1.0: result([10, 10, 30, 30])})
    assert [point["learnt"]["value"] for point in curve["points"]] == [0, 0.75, 0.5]
    assert [point["forgotten"]["value"] for point in curve["points"]] == [0, 0.25, 0.5]
    assert curve["best"] == 0.5 and "cannot be told apart from strength 1" in best_text(curve)


def test_answers_of_a_failing_model_are_saved_and_the_rest_is_asked_later(tmp_path, engine):
    model, suite = resolved(engine), EmojiSuite(questions()[:12])
    complete = run_suite(suite, model, tmp_path / "complete")
    dying = ResolvedModel(model.name, "llamacpp", Dying(engine, 5), model.model, model.revision)
    with pytest.raises(LabError, match="stopped after 5 of 12 answers .* command resumes"):
        run_suite(suite, dying, tmp_path)
    path = answers_file(tmp_path, model, "emoji")
    with path.open("ab") as file:
        file.write('{"key": "half an answer 🇸'.encode()[:-2])  # as a kill leaves it
    rest = ResolvedModel(model.name, "llamacpp", Dying(engine, 7), model.model, model.revision)
    assert run_suite(suite, rest, tmp_path) == complete
    assert rest.engine.left == 0  # seven were missing
    path.write_text("no JSON\n", encoding="utf-8")
    with pytest.raises(LabError, match="--again"):
        run_suite(suite, model, tmp_path)
    assert run_suite(suite, model, tmp_path, again=True) == complete


def test_answers_keep_the_order_of_the_questions_if_several_are_asked_at_once(tmp_path):
    lab, (entry,) = lab_for(["nano-emoji"], "pytorch")
    suite = EmojiSuite(TAUGHT[:16])
    try:
        found = collect_answers(tmp_path / "a.jsonl", resolve_model(lab, entry), suite.questions, suite.answer, "emoji")
    finally:
        lab.close()
    assert list(found) == list(suite.questions)
    result = suite.judge(found)
    assert [row["question"] for row in result.answers] == list(suite.questions)
    assert sum(bool(row["lenient"]) for row in result.answers) >= 12  # each answer is its own question's


def test_a_duplicate_question_counts_once(tmp_path, engine):
    suite = EmojiSuite([*questions()[:6], questions()[0]])
    result = run_suite(suite, resolved(engine), tmp_path)
    assert len(result.answers) == 6
    assert result.notes == ["1 of the emoji questions occur more than once: each counts once."]


def test_a_complete_evaluation_is_added_to_run_record_card_and_folder(tmp_path, engine):
    folder = Path(shutil.copytree(EMOJI, tmp_path / "nano-emoji"))
    model, suite = resolved(engine, folder), EmojiSuite(TAUGHT[:8])
    own = ResolvedModel(model.name, "llamacpp", engine, model.model, model.revision, folder)
    result = run_suite(suite, own, tmp_path)
    write_report(Evaluation(own, {"emoji": result}), Request(out=tmp_path))
    run_record = json.loads((folder / "run.json").read_text("utf-8"))
    (score,) = run_record["evaluation"].values()
    assert score["asked"] == 8 and {"right", "unsure"} < set(score)
    card = (folder / "README.md").read_text("utf-8")
    assert "![evaluation](evaluation.png)" in card and (folder / "evaluation.png").is_file()
    metrics = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"] for metric in metrics} == {"accuracy", "exact_match"}
    assert read_card("", folder, None).accuracy == {"other emoji": score["right"] / 8}


@pytest.mark.parametrize(
    ("request_", "names", "words"),
    [
        (Request(suite="emojy"), ["nano"], "no suite “emojy” .*did you mean “emoji”"),
        (Request(), ["nano-emojy"], "no model “nano-emojy” .*did you mean “nano-emoji”"),
        (Request(), ["finetome-1b"], "not published yet"),
        (Request(engine="llama"), ["nano"], "no engine “llama”"),
        (Request(every=5000), ["nano"], "--every 5000 leaves 1 of the 1,474 questions"),
        (Request(), ["nano", "nano"], "Two of the models are called nano"),
        (Request(suite="chat"), ["nano"], "no evaluation split: add --recipe"),
        (Request(suite="chat", recipe="finetome-nanu"), ["nano"], "no recipe “finetome-nanu”"),
        (Request(suite="none", tasks=["arc_eazy"]), ["nano"], "no task “arc_eazy” .*did you mean “arc_easy”"),
    ],
)
def test_invalid_requests_are_refused_in_one_sentence(tmp_path, request_, names, words):
    with pytest.raises(LabError, match=words):
        evaluate_models(names, Request(**{**vars(request_), "out": tmp_path}))


def test_the_command_ends_without_a_traceback(tmp_path):
    assert_refused(command("training", "evaluate", "nano", "--suite", "emojy"), "emojy", "emoji, chat, all")


def test_a_recipe_without_an_evaluation_split_is_refused():
    with pytest.raises(LabError, match="has no evaluation split"):
        ChatSuite(load_recipe("emoji-nano", ["data.evaluation=0"]))


def test_refusals_and_repetition_by_their_definitions():
    assert is_refusal("I'm sorry, but I can’t help.") and is_refusal("I don't know that one yet.")
    assert not is_refusal("Sweden. I'm sorry to say so.")
    # Nine words make six 4-grams, of which three are new: "a b c a", "b c a b", "c a b c", and again.
    assert repetition("a b c a b c a b c") == 0.5
    assert repetition("no word is here again") == repetition("too short") == 0


def test_the_held_out_loss_equals_pytorchs(tmp_path, engine):
    """Against transformers' own loss: labels on the assistant's tokens, end of turn included, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    suite = ChatSuite(load_recipe("emoji-nano", ["data.evaluation=6"]))
    answers = collect_answers(tmp_path / "a.jsonl", resolved(engine, NANO), suite.questions, suite.answer, "chat")
    found = suite.judge(answers)
    loss = found.measures[0]
    assert loss.metric == "loss"
    reference = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    for key, messages in suite.questions.items():
        nats = tokens = 0
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
                answer = tokenizer(message["content"] + "<|eot_id|>", add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    scores = reference(torch.tensor([before + answer])).logits[0].log_softmax(-1)
                at = range(len(before) - 1, len(before) + len(answer) - 1)
                nats -= sum(scores[place, token].item() for place, token in zip(at, answer, strict=True))
                tokens += len(answer)
        assert loss.weights[key] == tokens
        assert loss.values[key] == pytest.approx(nats, rel=0.02, abs=0.1)  # the engine's model has 8-bit weights


def test_an_engine_without_likelihoods_gives_the_other_metrics():
    suite = ChatSuite(load_recipe("emoji-nano", ["data.evaluation=4"]))
    record = {
        "answer": "I don't know that one yet.",
        "tokens": 8,
        "cut": False,
        "unscored": "host can't score answers.",
    }
    result = suite.judge({key: record for key in suite.questions})
    assert [m.metric for m in result.measures] == ["refusals", "repetition", "cut off", "length"]
    assert result.notes[-1] == "No loss: host can't score answers."


def test_a_loss_is_compared_only_over_the_same_tokens():
    def loss(tokens: float) -> Result:
        values = {str(i): float(i % 5) for i in range(10)}
        return Result([Measure("chat", "", "loss", "nats per token", values, dict.fromkeys(values, tokens))], [])

    assert differences({"a": loss(4.0), "b": loss(5.0)}) == []
    (row,) = differences({"a": loss(4.0), "b": loss(4.0)})
    assert row["value"] == 0 and row["p"] == row["adjusted"] == 1


@pytest.fixture
def task(tmp_path):
    """Two tasks of lm-evaluation-harness on local files: a choice and a free answer."""
    signs = [
        ("🐼", 0, "panda", "camel"),
        ("🐙", 1, "lion", "octopus"),
        ("🦁", 0, "lion", "panda"),
        ("🐸", 0, "frog", "lion"),
    ]
    rows = [dict(zip(("sign", "right", "a", "b"), row, strict=True)) for row in signs]
    data = tmp_path / "signs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        "doc_to_text": "What does {{sign}} mean?",
    }  # fmt: skip
    choice = shared | {
        "task": "signs_choice", "output_type": "multiple_choice", "doc_to_target": "right",
        "doc_to_choice": "{{[sign + ' is the ' + a + ' emoji.', sign + ' is the ' + b + ' emoji.']}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    free = shared | {
        "task": "signs_free", "output_type": "generate_until", "doc_to_target": "{{[a, b][right]}}",
        "generation_kwargs": {"until": [" emoji."], "max_gen_toks": 32},
        "filter_list": [{"name": "last", "filter": [
            {"function": "regex", "regex_pattern": "is the (.+)"}, {"function": "take_first"},
        ]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    for values in (choice, free):
        (tmp_path / f"{values['task']}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path


def test_a_task_of_the_harness_is_answered_through_the_engine(task, engine):
    from training.evaluation.harness import Harness

    model = resolved(engine, NANO)
    result = Harness([str(task / name) for name in ("signs_choice.yaml", "signs_free.yaml")]).evaluate(
        model, task, False
    )
    found = {measure.group: measure for measure in result.measures}
    assert found["signs_choice"].values == {"0": True, "1": True, "2": True, "3": True}
    assert sum(found["signs_free"].values.values()) >= 3 and found["signs_free"].metric == "exact_match (last)"
    assert "chat template" in result.notes[0]
    assert (
        len(answers_file(task, model, "tasks").read_text("utf-8").splitlines()) == 12
    )  # two for a choice, one for an answer
