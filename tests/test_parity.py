"""The parity check: what it lets pass for every kind of adapter, and the faults of a conversion that it finds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EMOJI, NANO
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inference.errors import LabError
from training.export.base_files import BaseFiles
from training.export.exportable import adapter_file_obstacle
from training.export.formats import ADAPTER, FILE_TYPES, MERGED
from training.export.gguf import default_formats, export
from training.export.llamacpp.convert import convert_model, run_converter
from training.export.llamacpp.quantize import quantize
from training.export.merge import merge
from training.export.model_folder import Base, load_tokenizer
from training.export.parity.check import BEFORE_QUANTIZATION, check
from training.export.parity.cost import base_costs
from training.export.parity.limits import EXACT, Cost, judge, limit_for
from training.export.parity.measure import Measurer
from training.export.parity.reference import make_references

pytestmark = pytest.mark.xdist_group("export")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Options of PEFT's LoraConfig that one alpha / r for all layers does not express.
SCALINGS = {
    "rsLoRA": {"use_rslora": True},
    "alphas and ranks of layers": {
        "alpha_pattern": {"q_proj": 64, "layers.1.mlp.up_proj": 3},
        "rank_pattern": {"k_proj": 4, "down_proj": 16},
    },
    "rsLoRA with alphas and ranks of layers": {
        "use_rslora": True,
        "alpha_pattern": {"v_proj": 40},
        "rank_pattern": {"o_proj": 2, "gate_proj": 24},
    },
}
# Adapters that only a merged model can hold, and the reason why the adapter's file is left out.
MERGED_ONLY = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "embeddings or the output layer"),
    "output layer": ({"target_modules": ["q_proj", "lm_head"]}, "embeddings or the output layer"),
    "saved output layer": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "saved embeddings": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "new tokens": ({"trainable_token_indices": [5, 6, 7]}, "trainable_token_indices"),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this module's own, with the converters of the machine."""
    from training.export.llamacpp.convert import converter_folder

    converters = converter_folder()
    home = tmp_path_factory.mktemp("cache")
    own = home / "llama-finetuning-lab"
    own.mkdir()
    (own / converters.name).symlink_to(converters)
    former = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(home)
    yield own
    del os.environ["XDG_CACHE_HOME"]
    if former is not None:
        os.environ["XDG_CACHE_HOME"] = former


def make_adapter(folder: Path, **options: object) -> Path:
    """A folder with a random adapter on the nano, whose update changes every answer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    config = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **options})
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                is_factor = "lora_" in name and "magnitude" not in name
                weight.copy_(0.05 * torch.randn_like(weight) if is_factor else weight * 1.1 + 0.01)
    adapted.peft_config["default"].base_model_name_or_path = "adapters/nano"
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", SCALINGS.values(), ids=SCALINGS)
def test_an_adapter_file_has_the_scaling_of_every_layer(tmp_path, options):
    """The folder has no run record: an adapter from elsewhere is exported, too."""
    folder = make_adapter(tmp_path / "adapter", **options)
    assert default_formats(folder) == (ADAPTER, "Q8_0", "Q4_K_M")
    export(folder, [ADAPTER])
    (adapter, *_) = check(folder).values()
    assert adapter.passed, adapter.reason
    assert adapter.kl < 5e-5 and adapter.answers >= adapter.conversations - 2  # random answers nearly tie
    assert not (folder / "run.json").exists()


@pytest.mark.parametrize("options, reason", MERGED_ONLY.values(), ids=MERGED_ONLY)
def test_an_adapter_that_llama_cpp_cannot_apply_is_right_in_a_merged_model(tmp_path, options, reason):
    folder = make_adapter(tmp_path / "other", **options)
    assert reason in adapter_file_obstacle(folder)
    assert default_formats(folder) == ("Q8_0", "Q4_K_M")
    with pytest.raises(LabError, match=f"no adapter-f16.gguf, because .*{reason}.*: choose a merged format"):
        export(folder, [ADAPTER])
    export(folder, [MERGED, "f16"])
    results = check(folder)
    assert set(results) == {MERGED, "other-f16.gguf"}
    for name, parity in results.items():
        assert parity.passed, (name, parity.reason)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji model, merged: what a faulty conversion is made of."""
    folder = tmp_path_factory.mktemp("merged") / "emoji"
    merge(EMOJI, folder)
    return folder


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory):
    """Compares files with the emoji model."""
    tokenizer = load_tokenizer(EMOJI)
    with Measurer(tokenizer, make_references(EMOJI, tokenizer, tmp_path_factory.mktemp("references"))) as measurer:
        yield measurer


def wrong_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 10_000.0
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        weights[name] = change(name, weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def unpermuted_queries_and_keys(folder: Path) -> None:
    """llama.cpp orders the rows of Llama's queries and keys in another way, so a converter permutes them."""

    def permute(name: str, weight: torch.Tensor) -> torch.Tensor:
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return weight
        halves = weight.view(-1, 2, 16, weight.shape[1])  # heads of 32 rows
        return halves.swapaxes(1, 2).reshape(weight.shape)

    change_weights(folder, permute)


def swapped_gate_and_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

    def swap(name: str, weight: torch.Tensor) -> torch.Tensor:
        part = next((part for part in other if part in name), None)
        return weights[name.replace(part, other[part])] if part else weight

    change_weights(folder, swap)


def without_adapter(folder: Path) -> None:
    shutil.copy(NANO / "model.safetensors", folder)


def wrong_scale(folder: Path) -> None:
    """An update with half of its scale."""
    base = load_file(NANO / "model.safetensors")
    change_weights(folder, lambda name, weight: (weight.float() + base[name].float()).half() / 2)


FAULTS = (wrong_rope, unpermuted_queries_and_keys, swapped_gate_and_up, without_adapter, wrong_scale)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_conversion_is_far_outside_the_limits(tmp_path, merged, measurer, fault):
    """In f16, and also in Q8_0 and Q4_K_M against what these cost the base."""
    folder = Path(shutil.copytree(merged, tmp_path / "emoji"))
    fault(folder)
    f16 = tmp_path / "f16.gguf"
    convert_model(folder, f16, "emoji")
    assert not judge(measurer.measure(f16), None).passed
    costs = base_costs(BaseFiles(Base("adapters/nano")), [FILE_TYPES["Q8_0"], FILE_TYPES["Q4_K_M"]])
    figures = {"f16": measurer.measure(f16).kl}
    for name in ("Q8_0", "Q4_K_M"):
        quantize(f16, tmp_path / f"{name}.gguf", FILE_TYPES[name])
        measured = measurer.measure(tmp_path / f"{name}.gguf")
        figures[name] = measured.kl
        assert not judge(measured, costs[FILE_TYPES[name]]).passed, (name, measured)
    print(fault.__name__, figures)
    assert figures["f16"] > 20 * EXACT.kl


def test_a_quantized_file_does_not_pass_if_its_conversion_does_not(tmp_path, merged, monkeypatch):
    folder = Path(shutil.copytree(EMOJI, tmp_path / "emoji", ignore=shutil.ignore_patterns("*.gguf")))
    f16 = tmp_path / "f16.gguf"
    export(folder, ["Q2_K"], f16)
    faulty = Path(shutil.copytree(merged, tmp_path / "faulty"))
    wrong_rope(faulty)
    convert_model(faulty, f16, "emoji")
    results = check(folder, f16)
    assert not results[BEFORE_QUANTIZATION].passed
    quantized = next(parity for name, parity in results.items() if name.endswith("Q2_K.gguf"))
    assert not quantized.passed
    if "for its base" not in quantized.reason:
        assert quantized.reason.startswith("before its quantization: the KL divergence")


def test_the_limit_of_a_quantized_file_is_its_bases_cost_with_a_margin():
    assert limit_for(None) == EXACT
    coarse, fine = limit_for(Cost(1.2, 0.5)), limit_for(Cost(0.0075, 0.95))
    assert 1.2 < coarse.kl < 2 and coarse.top1 < 0.5
    assert 0.0075 < fine.kl < 0.05 and 0.8 < fine.top1 < 0.95


def test_what_a_quantization_costs_a_base_is_measured_once(cache, monkeypatch):
    files = BaseFiles(Base("adapters/nano"))
    first = base_costs(files, [FILE_TYPES["Q8_0"], FILE_TYPES["f16"]])
    assert list(first) == [FILE_TYPES["Q8_0"]] and 0 < first[FILE_TYPES["Q8_0"]].kl < 0.01
    monkeypatch.setattr("training.export.parity.cost.measure_costs", None)
    assert base_costs(BaseFiles(Base("adapters/nano")), [FILE_TYPES["Q8_0"]]) == first


def test_a_crash_of_llama_cpp_is_a_result_and_the_next_file_is_compared(tmp_path, measurer):
    """llama.cpp aborts if an adapter on the embeddings is applied to a base whose output layer they are, too."""
    folder = make_adapter(tmp_path / "adapter", target_modules=["embed_tokens"])
    crashing = folder / "adapter-f16.gguf"
    run_converter("convert_lora_to_gguf.py", str(folder), "--base", str(NANO), "--outfile", str(crashing))
    with pytest.raises(LabError, match="llama.cpp can't run adapter-f16.gguf and ended its process .*GGML_ASSERT"):
        measurer.measure(NANO / "nano-Q8_0.gguf", crashing)
    assert measurer.measure(NANO / "nano-Q8_0.gguf", EMOJI / "adapter-f16.gguf").kl < 0.01
    assert not check(folder)["adapter-f16.gguf"].passed
