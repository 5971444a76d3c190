"""Run records, valid and invalid, and the differences between two models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import EMOJI, NANO

from inference.arena.model_diff import PairedCounts, field_pairs, paired_counts
from inference.catalog import Catalog
from inference.errors import LabError
from inference.run_records import EVALUATION, RUN_RECORD, Evaluation, RunRecord, RunRecords, parse
from inference.settings import Settings
from training.evaluation.statistics import compare


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """The shipped catalog."""
    return Catalog.read(Settings().catalog)


def test_a_run_record_is_read(catalog):
    run_record = RunRecords().read(catalog["nano-emoji"])
    assert run_record.recipe["lora"]["r"] == 16 and run_record.data_name == "emoji" and not run_record.unread
    assert [figure.group for figure in run_record.headline] == ["flags", "other emoji", "pairs"]
    assert run_record.headline[0].text == "89\u00a0% (86–91, n\u00a0496)"
    assert run_record.curve[0][0] == 10 and run_record.curve[-1][1] < run_record.curve[0][1]


def test_stages_are_joined_to_one_curve(catalog):
    curve = RunRecords().read(catalog["nano"]).curve
    assert [step for step, _ in curve] == sorted(step for step, _ in curve) and curve[-1][0] > 4000


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("{}", ()),
        ('{"losses": 3, "seconds": "long", "steps": 7}', ("losses", "seconds")),
        ('{"recipe": ["r", 8], "steps": 7}', ("recipe",)),
        ('{"figures": [{"suite": "emoji", "value": NaN, "low": 0, "high": 1, "count": 2}]}', ("figures",)),
        ('{"answers": [{"question": "only"}], "versions": {"torch": 2}}', ("versions", "answers")),
    ],
)
def test_an_invalid_field_is_listed_and_the_rest_is_read(text, unread):
    run_record = parse(RunRecord, text.encode(), "run.json of X")
    assert run_record.unread == unread
    assert run_record.steps == (7 if "steps" in text else None)


def test_a_loss_that_is_not_a_number_is_left_out_of_the_curve():
    run_record = parse(RunRecord, b'{"losses": [[1, 2.5], [2, NaN], [3, null], [4, 1.5]]}', "run.json of X")
    assert run_record.curve == [(1, 2.5), (4, 1.5)]


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"data_set": "\\ud800"}'])
def test_a_file_that_is_not_a_json_object_is_refused_in_one_sentence(raw):
    with pytest.raises(LabError, match=r"run.json of X cannot be read \(.*\): write it again as a JSON object\.$"):
        parse(RunRecord, raw, "run.json of X")


def test_a_missing_and_an_oversized_run_record_are_refused(catalog, tmp_path):
    entry = replace(catalog["nano-emoji"], folder=tmp_path)
    assert RunRecords().read_local(entry) is None
    with pytest.raises(LabError, match=r"Nano · Emoji has no run\.json"):
        RunRecords().read(entry)
    (tmp_path / RUN_RECORD).write_text(json.dumps({"data_set": "x" * 2_000_001}))
    with pytest.raises(LabError, match="more than 2 MB"):
        RunRecords().read(entry)


def test_a_run_record_is_read_from_the_hub_once(catalog, tmp_path, monkeypatch):
    from huggingface_hub import HfApi, constants

    from local_hub import LocalHub

    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        entry = replace(catalog["nano-emoji"], folder=None, repo="me/emoji")
        api.create_repo("me/emoji")
        with pytest.raises(LabError, match=r"me/emoji has no run\.json on the Hub"):
            RunRecords().read(entry)
        for name in (RUN_RECORD, EVALUATION):
            api.upload_file(path_or_fileobj=EMOJI / name, path_in_repo=name, repo_id="me/emoji")
        run_records = RunRecords()
        assert run_records.read_local(entry) is None
        assert run_records.read(entry) == RunRecords().read(catalog["nano-emoji"])
        count = len(hub.requests)
        assert run_records.read_local(entry) == run_records.read(entry) and len(hub.requests) == count
        assert len(run_records.evaluation(entry).suites["emoji"].answers) == 1474
    with pytest.raises(LabError, match="is unreachable"):
        RunRecords().read(entry)


def test_two_run_record_differ_where_their_recipes_do(catalog):
    pair = [catalog["nano-emoji"], catalog["nano-emoji-1-epoch"]]
    found = field_pairs(pair, [RunRecords().read(entry) for entry in pair])
    assert [
        (row.field, row.first, row.second) for row in found if row.part == "Recipe" and not row.same and row.known
    ] == [("epochs", "4", "1")]
    assert "data.split" in {row.field for row in found if not row.known}  # an earlier version made the first one
    assert {"lora.r", "warmup_steps", "packing"} <= {row.field for row in found if row.same}


def test_answers_to_the_same_questions_are_paired_as_the_evaluation_pairs_them():
    documents = [json.loads((folder / EVALUATION).read_text("utf-8")) for folder in (NANO, EMOJI)]
    found = {
        row.group: row for row in paired_counts(*(parse(Evaluation, json.dumps(d).encode(), "X") for d in documents))
    }
    for group in ("flags", "pairs", "other emoji"):
        right = [
            {a["question"]: a["lenient"] for a in d["suites"]["emoji"]["answers"] if a["group"] == group}
            for d in documents
        ]
        expected = compare(*([values[question] for question in sorted(right[0])] for values in right))
        assert found[group].p == pytest.approx(expected.p, rel=1e-9) and found[group].count == expected.count
        assert (found[group].only_second - found[group].only_first) / expected.count == pytest.approx(expected.value)


def test_nothing_that_differs_is_no_finding():
    assert PairedCounts("x", both=3, neither=2).p == 1 and PairedCounts("x", only_first=1).p == 1
