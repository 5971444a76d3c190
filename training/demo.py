"""The loop on the embedded models, from data to an answer: `make demo`

Fine-tunes the two emoji recipes on the nano base, exports them, asks base and both adapters the evaluation questions
through the engine, and prints what changed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from inference.engines import load_engine
from inference.settings import PROJECT
from training.evaluate import answer_of, evaluate_files, files_of, table
from training.export import export
from training.recipe import load_recipe
from training.sft import fine_tune

ASKED = ("What does 🇸🇪 mean?", "What does 🇸🇷 mean?", "What does 🐼 mean?")


def main() -> None:
    """Run the loop in a temporary folder and print its tables."""
    folders = {"nano": PROJECT / "adapters" / "nano"}
    lines = ["| step | seconds | files |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("emoji-nano-1-epoch", "emoji-nano"):
            recipe = load_recipe(name)
            started = time.perf_counter()
            folder = fine_tune(recipe, Path(temporary) / recipe.name)
            trained = time.perf_counter()
            (gguf,) = export(folder, ["adapter-f16"])
            exported = time.perf_counter()
            size = (folder / "adapter_model.safetensors").stat().st_size
            lines.append(f"| fine-tune {recipe.name} | {trained - started:.0f} | LoRA {size / 1e6:.1f} MB |")
            size = gguf.stat().st_size
            lines.append(f"| export {recipe.name} | {exported - trained:.0f} | GGUF {size / 1e6:.1f} MB |")
            folders[recipe.name] = folder
        started = time.perf_counter()
        scores = {name: evaluate_files(files_of(folder), label=name) for name, folder in folders.items()}
        lines.append(f"| evaluate all three | {time.perf_counter() - started:.0f} | |")
        print("\n".join(["", *lines, "", table(scores), ""]))
        engine = load_engine("llamacpp")
        for name, folder in folders.items():
            for question in ASKED:
                print(f"{name}: {question} {answer_of(engine, files_of(folder), question)}")
        engine.close()


if __name__ == "__main__":
    main()
