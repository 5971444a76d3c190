"""Findings about the chat template and the tokenizer, alone and beside the original's."""

from __future__ import annotations

from inference.doctor.facts import Encoder, ModelFacts, Vocabulary
from inference.doctor.fixed_prompts import load_conversations
from inference.doctor.report import Report
from inference.engines import Message
from inference.engines.chat_template.named import OWN_TOKEN, fitting_templates
from inference.errors import LabError
from inference.validation import shorten

QUESTION, ANSWER = Message(role="user", content="a"), Message(role="assistant", content="b")
EXCERPT = 40  # characters of two prompts where they differ


def check_template(facts: ModelFacts, report: Report) -> Encoder | None:
    """Add findings about a model's template. Returns what encodes with it; None if that is not possible."""
    vocabulary = facts.vocabulary
    if facts.template is None or vocabulary is None:
        if vocabulary is not None:
            names = fitting_templates(vocabulary.spellings[token] for token in vocabulary.special)
            fitting = f" Its special tokens fit {' and '.join(names[:3])}." if names else ""
            report.add("template-missing", f"The model has no chat template.{fitting}")
        return None
    try:
        encoder = facts.encoder()
    except LabError as error:
        report.add("template-invalid", f"The chat template or the tokenizer can't be used: {error}")
        return None
    if takes_a_question(encoder, report):
        check_tokens(encoder, vocabulary, report)
        check_end(encoder, vocabulary, report)
    return encoder


def takes_a_question(encoder: Encoder, report: Report) -> bool:
    """Whether the template renders a plain question. Adds a finding if it does not."""
    try:
        encoder.template.render([QUESTION])
    except LabError as error:
        report.add("template-fails", f"The chat template refuses a plain question: {error}")
        return False
    return True


def check_tokens(encoder: Encoder, vocabulary: Vocabulary, report: Report) -> None:
    """Add findings about the special tokens and the BOS that a template writes."""
    text, ids = encoder.template.render([QUESTION]), encoder.template.encode([QUESTION])
    known = set(vocabulary.spellings.values())
    if unknown := sorted(set(OWN_TOKEN.findall(text)) - known):
        report.add(
            "template-tokens", f"The chat template writes {', '.join(unknown)}, which the vocabulary does not have."
        )
    written = next((place for place, token in enumerate(ids) if token != vocabulary.bos), len(ids))
    if written > 1:
        report.add(
            "bos-twice", f"The chat template itself writes the BOS {vocabulary.name(vocabulary.bos)} {written} times."
        )
    elif written and vocabulary.adds_bos:
        report.add(
            "bos-twice-possible",
            f"The chat template writes the BOS {vocabulary.name(vocabulary.bos)}, and the tokenizer adds one "
            "(add_bos_token).",
        )
    elif not written and vocabulary.bos is not None and not vocabulary.adds_bos:
        report.add("bos-none", "Neither the chat template nor the tokenizer writes a BOS.")


def turn_end(encoder: Encoder, special: frozenset[int]) -> int | None:
    """The special token that a template writes after an answer; None if it writes none or refuses an answer."""
    try:
        prompt, closed = encoder.template.encode([QUESTION]), encoder.template.encode([QUESTION, ANSWER])
    except LabError:
        return None
    start = next((i for i, (a, b) in enumerate(zip(prompt, closed, strict=False)) if a != b), len(prompt))
    return next((token for token in closed[start:] if token in special), None)


def check_end(encoder: Encoder, vocabulary: Vocabulary, report: Report) -> None:
    """Add findings if the token that ends a turn is not one that ends an answer."""
    end = turn_end(encoder, vocabulary.special)
    if end is None:
        report.add("turn-end-missing", "The chat template writes no special token after an answer.")
    elif not encoder.is_end(end):
        report.add(
            "turn-end",
            f"The chat template ends a turn with {vocabulary.name(end)}, and the model's end tokens are "
            f"{', '.join(map(vocabulary.name, vocabulary.eos)) or 'none'}.",
        )
    elif end not in vocabulary.eos:
        report.add(
            "turn-end-by-name",
            f"The chat template ends a turn with {vocabulary.name(end)}. The files name another end token "
            f"({', '.join(map(vocabulary.name, vocabulary.eos))}), and llama.cpp recognizes this one by its spelling.",
        )


def compare_prompts(file: Encoder, original: Encoder, report: Report) -> None:
    """Add a finding if fixed conversations have another text or other ids than the original gives them."""
    texts, ids, first, compared = 0, 0, "", 0
    for messages in load_conversations():
        try:
            expected, tokens = original.template.render(messages), original.template.encode(messages)
        except LabError:
            continue  # some templates allow no system prompt
        compared += 1
        try:
            found, own = file.template.render(messages), file.template.encode(messages)
        except LabError:
            found, own = "", []
        if found != expected:
            texts += 1
            first = first or difference(found, expected)
        elif own != tokens:
            ids += 1
    if texts:
        report.add(
            "template",
            f"{texts} of {compared} fixed prompts have another text than the original's chat template gives: {first}.",
        )
    if ids:
        report.add(
            "token-ids",
            f"{ids} of {compared} fixed prompts have other token ids than the original's tokenizer gives that text.",
        )


def difference(found: str, expected: str) -> str:
    """Where two texts first differ, in words."""
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    parts = (shorten(repr(text[at : at + EXCERPT]), EXCERPT + 4) for text in (found, expected))
    return "{} in place of {}".format(*parts)
