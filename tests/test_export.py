"""Exporting a run: the GGUF files, their parity with the PyTorch model, and its record."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from conftest import EMOJI, NANO, ask

from inference.engines import ModelFiles
from inference.errors import LabError
from inference.settings import PROJECT
from training.export.gguf import FORMATS, export
from training.export.parity import check, table
from training.export.llamacpp.quantize import QUANTIZED, quantize
from training.run_record import read_run_record, write_run_record

pytestmark = pytest.mark.xdist_group("export")
ON_SHIPPED_BASE = "adapter-f16.gguf on nano-Q8_0.gguf"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji run with a title, exported to every format."""
    folder = copy_of(EMOJI, tmp_path_factory.mktemp("export"))
    run_record = read_run_record(folder)
    run_record["recipe"]["title"] = "Nano-Emoji"
    write_run_record(folder, run_record)
    export(folder, FORMATS)
    return folder


@pytest.fixture(scope="module")
def parities(run):
    return check(run)


def copy_of(folder: Path, parent: Path) -> Path:
    return Path(shutil.copytree(folder, parent / folder.name, ignore=shutil.ignore_patterns("adapter-*.gguf")))


def test_an_adapter_is_exported_as_an_adapter_and_as_merged_models(run):
    made = {path.name for path in run.iterdir()} - {path.name for path in EMOJI.iterdir()}
    assert made == {f"Nano-Emoji-{name}.gguf" for name in ("Q8_0", "Q4_K_M", "f16")}
    sizes = [(run / f"Nano-Emoji-{name}.gguf").stat().st_size for name in ("Q4_K_M", "Q8_0", "f16")]
    assert sizes == sorted(sizes)


def test_every_file_answers_through_the_engine(run, engine):
    merged = [ModelFiles(run / f"Nano-Emoji-{name}.gguf") for name in ("Q8_0", "Q4_K_M", "f16")]
    for files in [ModelFiles(NANO / "nano-Q8_0.gguf", run / "adapter-f16.gguf"), *merged]:
        answer, _ = ask(engine, files, "What does 🐼 mean?")
        assert "panda" in answer, files


def test_every_file_is_as_close_as_its_quantization_allows(run, parities):
    assert set(parities) == {
        "adapter-f16.gguf",
        ON_SHIPPED_BASE,
        *(f"Nano-Emoji-{name}.gguf" for name in (*QUANTIZED, "f16")),
    }
    for name, parity in parities.items():
        assert parity.passed, (name, parity.reason)
        assert parity.prompts == parity.token_ids == parity.conversations >= 12
    exact = [parities["adapter-f16.gguf"], parities["Nano-Emoji-f16.gguf"]]
    assert all(parity.kl < 1e-4 and parity.answers == parity.conversations for parity in exact)
    losses = [parities[f"Nano-Emoji-{name}.gguf"].kl for name in ("f16", "Q8_0", "Q4_K_M")]
    assert losses == sorted(losses)


def test_the_run_record_has_the_parity(run, parities):
    run_record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert run_record["parity"]["Nano-Emoji-Q8_0.gguf"]["passed"] is True
    assert run_record["parity"][ON_SHIPPED_BASE]["on"] == "nano-Q8_0.gguf"
    assert run_record["evaluation"] == read_run_record(EMOJI)["evaluation"]
    assert table(parities).count("| passed |") == len(parities)


def test_files_of_another_adapter_or_without_one_fail(tmp_path, engine):
    """The adapter of another run in this one's place, a base without any, and half a file."""
    folder = copy_of(EMOJI, tmp_path)
    shutil.copy(PROJECT / "adapters" / "nano-emoji-1-epoch" / "adapter-f16.gguf", folder)
    shutil.copy(NANO / "nano-Q8_0.gguf", folder / "Nano-Emoji-Q8_0.gguf")
    (folder / "Nano-Emoji-Q4_K_M.gguf").write_bytes((NANO / "nano-Q8_0.gguf").read_bytes()[:100_000])
    parities = check(folder)
    assert not any(parity.passed for parity in parities.values())
    for name in ("adapter-f16.gguf", ON_SHIPPED_BASE, "Nano-Emoji-Q8_0.gguf"):
        assert "KL divergence" in parities[name].reason and parities[name].kl > 0.05
    assert "can't be loaded" in parities["Nano-Emoji-Q4_K_M.gguf"].reason
    assert "can't be loaded" in read_run_record(folder)["parity"]["Nano-Emoji-Q4_K_M.gguf"]["reason"]
    # An engine that was created before still receives llama.cpp's reason for a failure.
    with pytest.raises(LabError, match="tensor .* data is not within the file bounds"):
        ask(engine, ModelFiles(folder / "Nano-Emoji-Q4_K_M.gguf"), "Hello")


def test_another_chat_template_fails(tmp_path):
    folder = copy_of(NANO, tmp_path)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace(" | trim", ""), encoding="utf-8")
    parity = check(folder)["nano-Q8_0.gguf"]
    assert not parity.passed and "2 of 14 prompts differ from the tokenizer's chat template" in parity.reason
    assert "other token ids" in parity.reason and "KL" not in parity.reason


def test_a_fully_fine_tuned_model_is_quantized_twice_and_another_model_once(tmp_path):
    folder = copy_of(NANO, tmp_path)
    assert [path.name for path in export(folder)] == ["nano-Q8_0.gguf"]
    write_run_record(folder, {"recipe": {"title": "Nano-Full", "method": "full"}})
    assert [path.name for path in export(folder)] == ["Nano-Full-Q8_0.gguf", "Nano-Full-Q4_K_M.gguf"]


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(LabError, match="holds no model"):
        export(tmp_path)
    with pytest.raises(LabError, match="no format “Q5”: choose from adapter-f16, Q8_0, Q4_K_M, f16"):
        export(EMOJI, ["Q5"])
    with pytest.raises(LabError, match="has no GGUF file"):
        check(copy_of(EMOJI, tmp_path))


def test_a_full_disk_is_reported_and_leaves_no_file(run, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(LabError, match="make room on the disk"):
            quantize(run / "Nano-Emoji-f16.gguf", tmp_path / "out.gguf", QUANTIZED["Q8_0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())
