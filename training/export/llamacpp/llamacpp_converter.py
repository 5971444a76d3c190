"""Runs one of llama.cpp's converters in a process of its own: `python -P llamacpp_converter.py FOLDER SCRIPT ARGUMENT…`

FOLDER is `vendor/llama.cpp` of llama-cpp-python's sdist. Its `gguf-py` must precede any installed gguf package, which
may be too old. A converter identifies a tokenizer by a hash of its output, so it refuses newly trained tokenizers. If
the tokenizer splits text by Llama 3's pattern, Llama 3's name is correct.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

# From the tokenizer.json of Llama 3. llama.cpp implements this pattern under the name "llama-bpe".
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def splits_like_llama3(tokenizer_json: str) -> bool:
    """Whether a fast tokenizer (its JSON) splits by Llama 3's pattern and then into bytes."""
    steps = json.loads(tokenizer_json)["pre_tokenizer"].get("pretokenizers", [])
    return [step["type"] for step in steps] == ["Split", "ByteLevel"] and steps[0]["pattern"] == {"Regex": LLAMA3_SPLIT}


def main() -> None:
    """Patch the converter's list of known tokenizers, then run it as a script."""
    folder, script, *arguments = sys.argv[1:]
    sys.path[:0] = [folder, str(Path(folder) / "gguf-py")]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def name_of_pre_tokenizer(self: TextModel, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if splits_like_llama3(tokenizer.backend_tokenizer.to_str()):
                return "llama-bpe"
            raise

    TextModel.get_vocab_base_pre = name_of_pre_tokenizer
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(folder) / script), run_name="__main__")


if __name__ == "__main__":
    main()
