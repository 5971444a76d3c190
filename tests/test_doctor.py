"""The doctor names each known fault, says what users see of it, and finds nothing wrong in healthy files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import EMOJI, NANO, command
from gguf_faults import write_faulty
from huggingface_hub import HfApi, constants

from inference.doctor.confined import Paths, examine
from inference.doctor.examine import Doctor, examine_confined
from inference.doctor.explanations import EXPLANATIONS
from inference.doctor.reading.layer_names import from_gguf_order
from inference.doctor.report import Report
from inference.engines.chat_template.named import find_template
from inference.errors import LabError
from inference.formats.gguf_file import read_gguf_file
from inference.lab import Lab
from local_hub import LocalHub

MODEL, ADAPTER = NANO / "nano-Q8_0.gguf", EMOJI / "adapter-f16.gguf"
TEMPLATE = (NANO / "chat_template.jinja").read_text(encoding="utf-8")
TOKENS = read_gguf_file(MODEL).metadata["tokenizer.ggml.tokens"]


def examined(file: Path, original: Path | None = None, base: Path | None = None) -> Report:
    """The last report of an examination in this process."""
    *_, report = examine(
        Paths(target=file.name, file=file, against="it" if original else None, original=original, base=base)
    )
    return report


def codes(report: Report) -> set[str]:
    """The errors and warnings."""
    return {finding.code for finding in report.findings if finding.severity != "note"}


def rows_in_the_order_of_safetensors(name: str, rows: np.ndarray) -> np.ndarray:
    return from_gguf_order(rows, 32) if name.endswith(("attn_q.weight", "attn_k.weight")) else rows


def infinite_scale(name: str, rows: np.ndarray) -> np.ndarray:
    """A block of Q8_0 begins with its scale in float16, here infinity."""
    changed = rows.copy()
    if name == "blk.2.ffn_up.weight":
        changed[0, :2] = (0x00, 0x7C)
    return changed


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PADDED = [*TOKENS, *(f"[PAD{i}]" for i in range(64))]
# What is changed, what the file alone shows, and what more it shows beside the original.
FAULTS = {
    "wrong template": (
        {"tokenizer.chat_template": find_template("chatml")}, {"template-tokens", "turn-end-missing"}, {"template"}
    ),
    "endless template": ({"tokenizer.chat_template": ENDLESS}, {"template-fails"}, {"template"}),
    "wrong eos": ({"tokenizer.ggml.eos_token_id": 65}, {"eos-ordinary"}, {"eos"}),
    "BOS twice": ({"tokenizer.chat_template": "{{ bos_token }}" + TEMPLATE}, {"bos-twice"}, {"template"}),
    "no BOS": ({"tokenizer.ggml.add_bos_token": False}, set(), {"bos"}),
    "wrong rope base": ({"llama.rope.freq_base": 10_000.0}, set(), {"rope-base", "output"}),
    "longer context": ({"llama.context_length": 4096}, set(), {"context-longer"}),
    "vocabulary off by padding": (
        {"tokenizer.ggml.tokens": PADDED, "tokenizer.ggml.token_type": [1] * len(PADDED)}, {"vocabulary-size"}, set()
    ),
}  # fmt: skip


@pytest.mark.parametrize("metadata, alone, beside", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_metadata_is_named(tmp_path, metadata, alone, beside):
    faulty = write_faulty(MODEL, tmp_path / "faulty.gguf", metadata)
    assert codes(examined(faulty)) == alone
    assert codes(examined(faulty, NANO)) == alone | beside


def test_a_wrong_order_of_queries_and_keys_is_named_with_the_first_layer_that_differs(tmp_path):
    faulty = write_faulty(MODEL, tmp_path / "faulty.gguf", change=rows_in_the_order_of_safetensors)
    assert not codes(examined(faulty))
    report = examined(faulty, NANO)
    assert codes(report) == {"qk-order", "output"} and report.exit_code == 4
    assert report.figures.first_layer == 0 and report.figures.kl > 0.1
    assert "12 matrices" in next(finding.what for finding in report.findings if finding.code == "qk-order")


def test_healthy_files_have_no_errors_and_no_warnings():
    report = examined(MODEL, NANO)
    assert not codes(report) and report.exit_code == 0
    assert report.figures.kl < 0.002 and report.figures.first_layer is None and len(report.figures.layer_errors) == 6
    assert report.facts["what it is"] == "llama model of 5.2 M parameters (gguf)"
    assert [(kind.name, kind.tensors) for kind in report.types] == [("Q8_0", 43), ("F32", 13)]
    assert not codes(examined(NANO)) and not codes(examined(EMOJI, base=MODEL))
    assert not codes(examined(ADAPTER, EMOJI, MODEL)) and not codes(examined(ADAPTER, NANO))


def test_truncated_damaged_and_other_files_are_named(tmp_path):
    content = MODEL.read_bytes()
    for size, code in ((len(content) - 100_000, "truncated"), (5000, "truncated")):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        report = examined(tmp_path / "cut.gguf")
        assert codes(report) == {code} and report.exit_code == 4
    (tmp_path / "page.gguf").write_text("<html>not found</html>", encoding="utf-8")
    assert codes(examined(tmp_path / "page.gguf")) == {"unreadable"}
    report = examined(write_faulty(MODEL, tmp_path / "nan.gguf", change=infinite_scale))
    assert codes(report) == {"not-finite"} and "blk.2.ffn_up" in report.findings[0].what
    missing = write_faulty(MODEL, tmp_path / "m.gguf", change=lambda name, rows: None if "5.ffn_up" in name else rows)
    assert "missing-tensors" in codes(examined(missing))


def test_faults_of_an_adapter_are_named(tmp_path):
    def without(*parts: str) -> Path:
        return write_faulty(
            ADAPTER, tmp_path / "faulty.gguf", change=lambda name, rows: None if any(p in name for p in parts) else rows
        )

    assert codes(examined(without("blk.3.attn_v"))) == {"adapter-layers"}
    assert codes(examined(without("blk.5."), base=MODEL)) == {"adapter-layers"}
    assert codes(examined(without("blk.3.attn_v.weight.lora_a"))) == {"adapter-half", "adapter-layers"}
    report = examined(write_faulty(ADAPTER, tmp_path / "alpha.gguf", {"adapter.lora.alpha": 32.0}), EMOJI, MODEL)
    assert codes(report) == {"adapter-alpha"} and "0.5 times" in report.findings[0].what
    order = write_faulty(
        ADAPTER,
        tmp_path / "order.gguf",
        change=lambda name, rows: (
            from_gguf_order(rows, 32) if name.endswith(("q.weight.lora_b", "k.weight.lora_b")) else rows
        ),
    )
    assert codes(examined(order, EMOJI)) == {"qk-order"}
    assert codes(examined(EMOJI.parent / "nano-emoji-1-epoch" / ADAPTER.name, EMOJI)) == {"adapter-values"}


def test_a_file_that_is_odd_or_takes_too_long_is_a_finding(tmp_path):
    """The examination runs in a process that reads only what it is given."""
    odd = write_faulty(MODEL, tmp_path / "odd.gguf", {"tokenizer.ggml.token_type": "none", "general.name": 9.5})
    assert codes(examine_confined(Paths(target="odd", file=odd))) == {"template-invalid"}
    assert codes(examine_confined(Paths(target="slow", file=MODEL), seconds=0)) == {"crash"}
    report = examine_confined(Paths(target="nano", file=MODEL, against="nano", original=NANO))
    assert not codes(report) and report.figures


def test_models_of_the_hub_are_examined_also_those_that_no_engine_here_runs(tmp_path, monkeypatch):
    """An adapter on a base that the catalog lacks, and an original that has only safetensors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "server") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        for repo, folder, pattern in (
            ("me/original", NANO, ["*.json", "*.jinja", "*.safetensors"]),
            ("me/lora", EMOJI, ["adapter*"]),
        ):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=pattern)
        doctor = Doctor(Lab.from_environment(), local_files=False)
        assert not codes(doctor.examine("me/lora", "me/original"))
        assert not codes(doctor.examine("nano", "me/original"))
        with pytest.raises(LabError, match="me/nothing is not on the Hub"):
            doctor.examine("me/nothing")


def test_visitors_cannot_name_files_of_this_machine():
    doctor = Doctor(Lab.from_environment(), local_files=False)
    for path in (str(MODEL), "/etc/passwd", "adapters/nano"):
        with pytest.raises(LabError):
            doctor.examine(path)


def test_the_command_prints_findings_and_its_exit_code_says_how_bad_they_are(tmp_path):
    faulty = write_faulty(MODEL, tmp_path / "faulty.gguf", {"tokenizer.ggml.eos_token_id": 65})
    done = command("inference", "doctor", str(faulty), "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 4 and report["findings"][0]["code"] == "eos-ordinary"
    done = command("inference", "doctor", "nano")
    assert done.returncode == 0 and "Q8_0" in done.stdout and done.stdout.endswith("1 note\n")
    done = command("inference", "doctor", str(tmp_path / "no.gguf"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not exist" in done.stderr


def test_every_finding_of_the_checks_is_explained():
    import re

    from inference.settings import PROJECT

    source = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "inference" / "doctor").rglob("*.py"))
    used = set(re.findall(r"\breport\.add\(\s*\"([a-z-]+)\"", source))
    assert used <= EXPLANATIONS.keys()
