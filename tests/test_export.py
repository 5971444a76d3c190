"""Exporting a run: the GGUF files, their parity with the PyTorch model, and its record."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from conftest import EMOJI, NANO, ask
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.engines import Message, ModelFiles
from inference.errors import LabError
from inference.formats.gguf_header import read_gguf_facts
from inference.settings import PROJECT
from training.export.formats import DEFAULT_QUANTIZATIONS, FILE_TYPES, FORMATS, MERGED, NEED_IMPORTANCE, parse_formats
from training.export.gguf import export, export_adapter
from training.export.llamacpp.quantize import quantize
from training.export.parity.check import BEFORE_QUANTIZATION, check, table
from training.export.strength import with_strength
from training.run_record import read_run_record, write_run_record

pytestmark = pytest.mark.xdist_group("export")
EXPORTED = ("adapter-f16", MERGED, "Q8_0", "Q4_K_M", "f16", "bf16", "Q6_K")
MODELS = ("Q8_0", "Q4_K_M", "f16", "bf16", "Q6_K")
ON_SHIPPED_BASE = "adapter-f16.gguf on nano-Q8_0.gguf"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji run with a title, exported to several formats."""
    folder = copy_of(EMOJI, tmp_path_factory.mktemp("export"))
    run_record = read_run_record(folder)
    run_record["recipe"]["title"] = "Nano-Emoji"
    write_run_record(folder, run_record)
    export(folder, EXPORTED)
    return folder


@pytest.fixture(scope="module")
def parities(run):
    return check(run)


def copy_of(folder: Path, parent: Path) -> Path:
    return Path(shutil.copytree(folder, parent / folder.name, ignore=shutil.ignore_patterns("adapter-*.gguf")))


def test_an_adapter_is_exported_as_an_adapter_and_as_merged_models(run):
    made = {path.name for path in run.iterdir()} - {path.name for path in EMOJI.iterdir()}
    assert made == {MERGED, *(f"Nano-Emoji-{name}.gguf" for name in MODELS)}
    sizes = [(run / f"Nano-Emoji-{name}.gguf").stat().st_size for name in ("Q4_K_M", "Q6_K", "Q8_0", "f16")]
    assert sizes == sorted(sizes)


def test_every_file_answers_through_the_engine(run, engine):
    merged = [ModelFiles(run / f"Nano-Emoji-{name}.gguf") for name in MODELS]
    for files in [ModelFiles(NANO / "nano-Q8_0.gguf", run / "adapter-f16.gguf"), *merged]:
        answer, _ = ask(engine, files, "What does 🐼 mean?")
        assert "panda" in answer, files


def test_every_file_is_as_close_as_its_quantization_allows(run, parities):
    assert set(parities) == {
        "adapter-f16.gguf",
        ON_SHIPPED_BASE,
        MERGED,
        *(f"Nano-Emoji-{name}.gguf" for name in MODELS),
    }
    for name, parity in parities.items():
        assert parity.passed, (name, parity.reason)
        assert parity.prompts == parity.token_ids == parity.conversations >= 12
    exact = [parities["adapter-f16.gguf"], parities["Nano-Emoji-f16.gguf"]]
    assert all(parity.kl < 1e-4 and parity.answers == parity.conversations for parity in exact)
    losses = [parities[f"Nano-Emoji-{name}.gguf"].kl for name in ("f16", "Q8_0", "Q6_K", "Q4_K_M")]
    assert losses == sorted(losses)
    # What a quantization costs the base is beside what it costs the run.
    costs = [parities[f"Nano-Emoji-{name}.gguf"].base_kl for name in ("Q8_0", "Q6_K", "Q4_K_M")]
    assert 0 < costs[0] < costs[1] < costs[2] < 0.1
    assert all(parity.base_kl is None for parity in exact)


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
    assert [name for name, parity in parities.items() if parity.passed] == [BEFORE_QUANTIZATION]
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
    with pytest.raises(LabError, match="no adapter: choose another format than adapter-f16"):
        export(copy_of(NANO, tmp_path), ["adapter-f16"])
    with pytest.raises(LabError, match="has no GGUF file"):
        check(copy_of(EMOJI, tmp_path))


def test_a_baked_strength_is_that_of_the_dial(tmp_path, engine):
    run = shutil.copytree(EMOJI, tmp_path / "run")
    baked = with_strength(run, 1.25)
    record = read_run_record(baked)
    assert record["strength"] == 1.25 and not {"figures", "parity"} & record.keys()
    assert json.loads((baked / "adapter_config.json").read_text())["lora_alpha"] == 80  # 64 * 1.25
    base, question = NANO / "nano-Q8_0.gguf", [Message(role="user", content="What does 🇸🇷 mean?")]
    answer = "🇸🇷 is the flag of Suriname."
    dialled = engine.score(ModelFiles(base, run / "adapter-f16.gguf"), question, answer, 1.25)
    assert engine.score(ModelFiles(base, export_adapter(baked)), question, answer) == dialled
    assert with_strength(run, 1) == run
    for wrong in (0, 2):
        with pytest.raises(LabError, match="use a number above 0, up to 1.5"):
            with_strength(run, wrong)
    with pytest.raises(LabError, match="has no strength"):
        with_strength(NANO, 0.5)


def test_formats_have_the_names_of_llama_cpp():
    assert parse_formats(["q5_k_m, Q6_K", "BF16", "Q6_K"]) == ("Q5_K_M", "Q6_K", "bf16")
    assert {"Q4_0", "Q5_K_S", "IQ4_XS", "Q2_K", "f32", "TQ2_0", MERGED} <= set(FORMATS)
    with pytest.raises(LabError, match="no format “Q5_KM” .did you mean “Q5_K_M”.*: choose from adapter-f16, merged"):
        parse_formats(["Q5_KM"])
    with pytest.raises(LabError, match="IQ2_XS needs an importance matrix"):
        parse_formats(["iq2_xs"])


@pytest.mark.parametrize("name", [name for name in FILE_TYPES if name not in DEFAULT_QUANTIZATIONS])
def test_llama_cpp_writes_each_offered_type(half_precision_base, tmp_path, name):
    """And refuses those that need an importance matrix. Q1_0 fits no row of the nano."""
    out = tmp_path / "out.gguf"
    if name in (*NEED_IMPORTANCE, "Q1_0"):
        with pytest.raises(LabError, match="cannot be quantized"):
            quantize(half_precision_base, out, FILE_TYPES[name])
    else:
        quantize(half_precision_base, out, FILE_TYPES[name])
        assert out.stat().st_size < 21e6


def test_a_merged_model_is_complete_and_names_no_path(run):
    """vLLM and transformers load it without the base."""
    names = {path.name for path in (run / MERGED).iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    config = json.loads((run / MERGED / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16" and "_name_or_path" not in config
    tokenizer = AutoTokenizer.from_pretrained(run / MERGED)
    model = AutoModelForCausalLM.from_pretrained(run / MERGED, dtype="auto")
    chat = [{"role": "user", "content": "What does 🐼 mean?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = tokenizer.decode(model.generate(**inputs, max_new_tokens=24, do_sample=False)[0])
    assert "panda" in answer


def test_no_exported_file_names_a_path(run):
    for path in (*run.glob("*.gguf"), *(PROJECT / "adapters").glob("*/*.gguf")):
        start = path.read_bytes()[:100_000]
        assert b"/work" not in start and b"/tmp" not in start and str(PROJECT).encode() not in start, path
        assert str(run.parent).encode() not in start, path
        if path.name == "adapter-f16.gguf":
            facts = read_gguf_facts(start)
            assert facts.role == "adapter" and not facts.bases


def test_a_full_disk_is_reported_and_leaves_no_file(run, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(LabError, match="make room on the disk"):
            quantize(run / "Nano-Emoji-f16.gguf", tmp_path / "out.gguf", FILE_TYPES["Q8_0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())
