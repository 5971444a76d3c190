"""The private and undocumented API of libraries that the lab uses, with the version in which it was read.

Libraries change such code without notice. If a test here fails, read the new source, adapt the module that uses it, and
record the new version and hash in `PRIVATE_API`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import version

import pytest
from conftest import parse

from inference.settings import PROJECT

ROOMS = ("inference", "training", "ui", "local_hub")
NOT_LIBRARIES = {*ROOMS, *sys.stdlib_module_names}


@dataclass(frozen=True)
class PrivateApi:
    """A library's function, method or class, the start of its source's SHA-256, and the file that uses it."""

    module: str
    name: str
    sha256: str
    used_in: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


TRAINER, PROGRESS = "training/finetune/trainer.py", "training/finetune/progress.py"
ADAPTER = "training/finetune/adapter.py"
PYTORCH = "inference/engines/pytorch"
READ_IN = {"transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2", "datasets": "5.2.0", "torch": "2.13.0",
           "jinja2": "3.1.6", "accelerate": "1.15.0"}  # fmt: skip
PRIVATE_API = (
    PrivateApi("transformers.trainer", "Trainer._get_train_sampler", "1580d7493244", TRAINER),
    PrivateApi(
        "transformers.trainer", "Trainer._save_checkpoint", "a9111e30faa9", "training/finetune/planning/fallback.py"
    ),
    PrivateApi("accelerate.utils.memory", "should_reduce_batch_size", "6d93736ea113", "training/finetune/run.py"),
    PrivateApi("transformers.trainer_pt_utils", "get_length_grouped_indices", "16b1a4cc1e68", TRAINER),
    PrivateApi("transformers.masking_utils", "flash_attention_mask", "0c6990ab1111", "training/finetune/attention.py"),
    PrivateApi(
        "trl.trainer.dpo_trainer", "DPOTrainer._prepare_dataset", "35e349e8e826", "training/finetune/preference.py"
    ),
    PrivateApi("peft.tuners.lora.layer", "Linear.forward", "ec0a80f5c5ce", ADAPTER),
    PrivateApi("peft.tuners.lora.bnb", "Linear4bit.forward", "ba53967c7f85", ADAPTER),
    PrivateApi("trl.trainer.utils", "compute_flops_per_token", "c24cff3a04b7", PROGRESS),
    PrivateApi("trl.trainer.utils", "get_peak_flops", "af753a66da15", PROGRESS),
    PrivateApi("torch", "_foreach_copy_", "764abef1f8f7", f"{PYTORCH}/model_runner.py"),
    PrivateApi(
        "jinja2.environment", "Environment._generate", "dd7277bd6be3", "inference/engines/chat_template/sandbox.py"
    ),
)


def source_of(api: PrivateApi) -> str:
    """The source of a private API, or the schema of one that is compiled. Raises AttributeError if it is gone."""
    found = importlib.import_module(api.module)
    for part in api.name.split("."):
        # torch imports some of its modules when they are used.
        found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    if inspect.isbuiltin(found):
        import torch

        return str(getattr(torch.ops.aten, api.name).default._schema)
    return inspect.getsource(found)


@pytest.mark.parametrize("api", PRIVATE_API, ids=str)
def test_private_api_is_as_it_was_read(api):
    package = api.module.split(".")[0]
    where = f"{api.used_in} uses it; it was read in {package} {READ_IN[package]}, installed is {version(package)}"
    try:
        sha256 = hashlib.sha256(source_of(api).encode()).hexdigest()[:12]
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{api} is gone ({error}): {where}. Find its successor and adapt that file.")
    assert sha256 == api.sha256, (
        f"The source of {api} has changed: {where}. Read it, adapt that file, then record version and hash here."
    )


def uses(tree: ast.Module) -> set[str]:
    """The private names that a module takes from libraries: imported, as an attribute of an import, or by `super()`."""
    imported: dict[str, str] = {}  # a local name → the dotted name of the import
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name.split(".")[0]: alias for alias in node.names}
            imported |= {name: alias.name if alias.asname else name for name, alias in names.items()}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    imported = {name: full for name, full in imported.items() if full.split(".")[0] not in NOT_LIBRARIES}
    found = {full for full in imported.values() if is_private(full)}
    for node in ast.walk(tree):
        chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        root, _, rest = chain.partition(".")
        if is_private(rest) and rest.replace(".", "").isidentifier() and root in imported:
            found.add(f"{imported[root]}.{rest}")
        elif root == "super()" and is_private(rest):
            found.add(rest)
    # Of `torch._dynamo.config`, the attribute `torch._dynamo` is found as well.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def is_private(name: str) -> bool:
    """Whether a dotted name has a part with one leading underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def test_every_private_api_is_listed():
    paths = [path for room in ROOMS for path in (PROJECT / room).rglob("*.py")]
    trees = {path: parse(path) for path in paths}
    methods = {path: {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} for path, tree in trees.items()}
    listed = " ".join(map(str, PRIVATE_API))
    for path, tree in trees.items():
        inherited = set().union(*(methods[other] for other in paths if other != path))
        for name in uses(tree) - inherited:  # `super()` may be a class of the lab
            assert name in listed, f"{path.relative_to(PROJECT)} uses {name}, which PRIVATE_API does not list: add it."


@pytest.mark.parametrize("api", PRIVATE_API, ids=str)
def test_every_listed_private_api_is_still_used(api):
    code = (PROJECT / api.used_in).read_text(encoding="utf-8")
    assert api.name.split(".")[-1] in code, f"{api.used_in} no longer uses {api}: remove it from PRIVATE_API."
