"""Makes a checkpoint the same on every machine: no paths of the one that wrote it, and nothing that no resume reads."""

from __future__ import annotations

import json
from pathlib import Path

from training.publish.redact import without_paths

# PEFT's card, and a pickle of the trainer's arguments. A resume makes its own from the recipe.
NOT_READ = ("README.md", "training_args.bin")
SETTINGS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
STATE = "trainer_state.json"


def make_portable(checkpoint: Path) -> None:
    """Delete the files that no resume reads, and replace paths in the settings by names."""
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        if path.name in NOT_READ:
            path.unlink()
        elif path.name in (*SETTINGS, STATE):
            before = json.loads(path.read_text(encoding="utf-8"))
            template = {"chat_template": before["chat_template"]} if "chat_template" in before else {}
            after = without_paths(before) | template
            if after != before:
                path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
