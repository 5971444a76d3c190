"""Every kind of finding: its severity, what users see because of it, and the fix. `docs/doctor.md` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters. An error makes answers wrong or stops the model from running; a warning does so in
    some programs or for some questions; a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Explanation:
    """What a kind of finding means. `effect` is what users see, `fix` what to do."""

    severity: Severity
    effect: str
    fix: str


def error(effect: str, fix: str) -> Explanation:
    """An explanation of an error."""
    return Explanation(Severity.ERROR, effect, fix)


def warning(effect: str, fix: str) -> Explanation:
    """An explanation of a warning."""
    return Explanation(Severity.WARNING, effect, fix)


def note(effect: str, fix: str) -> Explanation:
    """An explanation of a note."""
    return Explanation(Severity.NOTE, effect, fix)


FILE = {
    "truncated": error(
        "No program loads it, or it crashes on the first question.",
        "Download the file again and compare its size and SHA-256 with the source's.",
    ),
    "tensor-type": error("The model does not load.", "Use a file of another quantization, or convert the model again."),
    "not-finite": error(
        "Answers are empty, or one token again and again.",
        "Convert it again from weights without overflow: float16 ends at 65,504, bfloat16 does not.",
    ),
    "missing-tensors": error("The model does not load, or answers nonsense.", "Download or convert it again."),
    "unreadable": error("No program opens it safely.", "Use a copy from another source."),
    "crash": error("The program that opens it ends.", "Use a copy from another source, or convert the model again."),
}
CONFIGURATION = {
    "context-missing": warning(
        "Programs choose a length of their own: answers are cut, or get worse in long conversations.",
        "Set the context length of the original's config.json (max_position_embeddings).",
    ),
    "context-longer": warning("Beyond the original's length answers are nonsense.", "Set the original's length."),
    "context-shorter": note("Long conversations are cut earlier.", "Set the original's length."),
    "rope-base-missing": note(
        "If the model was trained with another one, answers are wrong everywhere.",
        "Compare it with the original: add --against.",
    ),
    "rope-base": error(
        "The model confuses the positions of words: answers lose the thread, the more the longer the text.",
        "Set rope.freq_base to the original's rope_theta, or convert it again.",
    ),
    "rope-scaling": error(
        "Answers get worse beyond the context of the first training, or everywhere.",
        "Convert it again with the original's config.json.",
    ),
    "other-model": error("It answers as another model does.", "Name the original that it was made from."),
    "tied-embeddings": error(
        "Answers are nonsense.", "Convert it again with tie_word_embeddings as in the original's config.json."
    ),
    "untied-embeddings": note(
        "The file is larger. Nothing else, if both have the same values.", "Convert it again if the size matters."
    ),
    "vocabulary-size": error(
        "llama.cpp refuses the file; other programs stop at tokens without a row.",
        "Convert it again: the tokenizer must be padded to the rows of the embeddings (vocab_size).",
    ),
    "vocabulary-padding": note("Nothing: no text has these tokens.", "Keep the padding if you convert the model."),
    "vocabulary-resized": warning(
        "Adapters with embeddings of the original do not fit, nor does it as the draft of a larger model.",
        "Convert it again without resizing the embeddings.",
    ),
    "vocabulary-cut": error(
        "The last tokens can't be read or written.", "Convert it again without resizing the embeddings."
    ),
}
TOKENS = {
    "tokenizer-missing": error(
        "No program can read a question.",
        "Convert or publish it with the original's tokenizer.json and tokenizer_config.json.",
    ),
    "unknown-token": error(
        "The model does not load, or answers end at random.", "Set the id that the original's config.json has."
    ),
    "eos-missing": error(
        "Answers do not end by themselves.", "Set eos_token_id to the token that ends a turn in the chat template."
    ),
    "eos-ordinary": error(
        "Answers end in the middle, wherever this text occurs.",
        "Set eos_token_id to the token that ends a turn in the chat template.",
    ),
    "eos": error(
        "Answers end too early, or not at all.", "Set eos_token_id as in the original's generation_config.json."
    ),
    "bos": warning(
        "Prompts begin in another way than in training, with no BOS or two: worse answers.",
        "Set bos_token_id and add_bos_token as in the original's tokenizer.",
    ),
    "bos-twice": error(
        "The model sees a BOS twice, which it never did in training: worse answers.", "Remove one from the template."
    ),
    "bos-twice-possible": note(
        "Nothing in this lab and in llama.cpp's server, which keep one. Programs that tokenize the rendered text as "
        "usual give the model two.",
        "In your own program, tokenize the rendered text without special tokens.",
    ),
    "bos-none": note("Nothing, if the model was trained so.", "Compare it with the original: add --against."),
    "pad": note(
        "Nothing while answering.", "Set it as in the original's tokenizer_config.json if you fine-tune the model."
    ),
    "pad-eos": note(
        "Nothing while answering. If you fine-tune it, programs that learn nothing of padding do not learn to end.",
        "Set pad_token to a token that occurs in no text, such as <|finetune_right_pad_id|>.",
    ),
    "tokens": error(
        "Questions reach the model as other words, and its answers are shown as other words.",
        "Convert it again with the original's tokenizer.",
    ),
    "token-ids": error(
        "Some words reach the model in pieces that it rarely saw: worse answers, above all outside of English.",
        "Convert it again with a converter that knows this tokenizer (tokenizer.ggml.pre).",
    ),
}
TEMPLATE = {
    "template-missing": warning(
        "Programs guess one, so that questions do not look as in training; this lab refuses to chat with it.",
        "Add the chat template that it was trained with.",
    ),
    "template-invalid": error(
        "Programs that render templates refuse each question.", "Use the original's chat template and tokenizer."
    ),
    "template-fails": error("Each question fails.", "Use the original's chat template."),
    "template-tokens": error(
        "The model reads them as ordinary text, does not recognize turns, and its answers do not end.",
        "Use the original's chat template.",
    ),
    "template": error(
        "The model reads prompts that it was not trained on: worse answers, or answers that do not end.",
        "Copy the original's chat template into the file.",
    ),
    "turn-end": error(
        "Answers do not end: the model writes the next question, too.", "Add this token to eos_token_id."
    ),
    "turn-end-missing": warning(
        "Answers can go beyond their end, up to the token limit.", "Use the original's chat template."
    ),
    "turn-end-by-name": note("In other programs answers may not end.", "Add the token as tokenizer.ggml.eot_token_id."),
}
ADAPTER = {
    "adapter-half": error("The adapter does not load.", "Download or export it again."),
    "adapter-strange": error("The adapter does not load, or a part of it has no effect.", "Train it as plain LoRA."),
    "adapter-ranks": error("The adapter does not load.", "Download or export it again."),
    "adapter-layers": error(
        "A part of what was learnt is missing: answers between those of the base and of the adapter.",
        "Export it again with all layers.",
    ),
    "adapter-empty": warning("It answers as its base does.", "Train it, or export the trained one."),
    "adapter-scale-large": warning(
        "Answers can be nonsense: such scales are rare.", "Check lora_alpha and the rank in adapter_config.json."
    ),
    "adapter-base": error("The adapter does not load.", "Choose the base that it was trained on."),
    "adapter-alpha": error(
        "Answers are between those of the base and of the adapter, or overdone.",
        "Convert it again with the lora_alpha of its adapter_config.json.",
    ),
    "adapter-values": error("It answers as another adapter does.", "Convert it again from the adapter it was made of."),
}
VALUES = {
    "qk-order": error(
        "Answers are nonsense.",
        "Convert it again with a converter that orders the rows of queries and keys as llama.cpp does (`permute`).",
    ),
    "gate-up": error("Answers are nonsense.", "Convert it again."),
    "other-weights": warning(
        "It answers otherwise than the original. This is right if it was fine-tuned.",
        "Name the model that it was made from as the original; else convert it again.",
    ),
    "output": warning(
        "It answers otherwise than the original.",
        "Fix the other findings first; if there are none, use a quantization with more bits.",
    ),
}
EXPLANATIONS = {**FILE, **CONFIGURATION, **TOKENS, **TEMPLATE, **ADAPTER, **VALUES}
