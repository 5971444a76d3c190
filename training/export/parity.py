"""The parity report: does an exported file answer like the PyTorch model it was made from?
`python -m training export RUN` asks that of every file it makes.

The same conversations go through transformers (base and PEFT adapter, float32) and through llama.cpp, loaded as the
engine loads it: the prompts have to be equal to the letter and the token, the next-token distributions as close as
the file's quantization lets them be (mean KL divergence and how often both put the same token first), and greedy
answers are counted. The result goes into `run.json` under "parity"; publishing refuses what didn't pass.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import llama_cpp.llama_cpp as cpp
import numpy as np
import torch
import typer
import yaml
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from inference.engines import Message
from inference.engines.llamacpp.engine import compute_threads
from inference.engines.llamacpp.loaded_base import PROMPT_BATCH, LoadedBase
from inference.errors import LabError
from training.evaluation.resolve_model import files_of
from training.export.gguf import ADAPTER, Record, base_folder, convert_model, load_model, step, tokenizer_folder
from training.run_record import read_run_record, write_run_record

CONVERSATIONS = Path(__file__).with_name("parity.yaml")
ANSWER_TOKENS = 24  # of each greedy answer, at most


@dataclass(frozen=True)
class Limit:
    """What a file may lose: mean KL divergence in nats at most, share of equal first choices at least."""

    kl: float
    top1: float


# llama.cpp's own figures are of Llama 3 8B on Wikitext-2 (its tools/perplexity/README.md, revision f364eb6f; for f16
# against bf16 83330d8c): 0.000025, 0.0014, 0.031 nats and 99.7, 97.7, 91.9 % same first choices for f16, Q8_0, Q4_K_M.
# Smaller models lose more and a few conversations are a small sample, so four to five times that KL is let pass, and
# twice as many different first choices: in that table they grow with the root of KL, from Q8_0 down to Q2_K. f16's are
# near the noise of summing in another order, and its limit above that. A wrong adapter, scale or rope is off by whole
# tenths of nats and more. Types not listed are held to the last limit.
HALF = Limit(kl=1e-3, top1=0.99)
EIGHT_BITS = Limit(kl=5e-3, top1=0.95)
FOUR_BITS = Limit(kl=0.15, top1=0.82)
LIMITS = {
    cpp.LLAMA_FTYPE_ALL_F32: HALF,
    cpp.LLAMA_FTYPE_MOSTLY_F16: HALF,
    cpp.LLAMA_FTYPE_MOSTLY_BF16: HALF,
    cpp.LLAMA_FTYPE_MOSTLY_Q8_0: EIGHT_BITS,
}


@dataclass(frozen=True)
class Parity:
    """How one file compares. `on` is the base an adapter was put on; `kl` (nats) and `top1` (a share) are means over
    `positions`; `prompts`, `token_ids` and `answers` count the conversations in which these are equal. A file that
    can't be run has only a `reason`."""

    on: str | None
    quantization: str | None = None
    bits_per_weight: float | None = None
    conversations: int = 0
    positions: int = 0
    prompts: int = 0
    token_ids: int = 0
    kl: float | None = None
    top1: float | None = None
    answers: int = 0
    passed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Reference:
    """What the PyTorch model makes of one conversation: the tokens of prompt (so many) and greedy answer, whether the
    last one ended it, and the logits after each token but the last, float32 (tokens - 1, vocabulary)."""

    messages: list[Message]
    tokens: list[int]
    prompt: int
    ended: bool
    logits: torch.Tensor


def conversations() -> list[list[Message]]:
    """What is asked, as chat messages."""
    asked = []
    for entry in yaml.safe_load(CONVERSATIONS.read_text(encoding="utf-8")):
        turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(entry["turns"])]
        system = [Message(role="system", content=entry["system"])] if "system" in entry else []
        asked.append([*system, *turns])
    return asked


def prompt_of(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, list[int]]:
    """The prompt by transformers, its text and its token ids. Raises jinja2.TemplateError for what it refuses."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text, tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def references(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Reference]:
    """The PyTorch side, float32, on the GPU where there is one. Conversations that the chat template refuses (some
    know no system prompt) or that are too long for the model are left out."""
    model = load_model(folder, torch.float32).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    found = []
    for messages in conversations():
        try:
            _, prompt = prompt_of(tokenizer, messages)
        except jinja2.TemplateError:
            continue
        if len(prompt) + ANSWER_TOKENS <= longest:
            found.append(answer(model, messages, prompt))
    if not found:
        raise LabError(f"The chat template of {folder.name} refuses every conversation: use an instruct model as base.")
    return found


@torch.inference_mode()
def answer(model: PreTrainedModel, messages: list[Message], prompt: list[int]) -> Reference:
    """The greedy answer, its stop token included, and all logits on the CPU.

    Not by `generate`, which applies what a model's generation_config asks for, such as a repetition penalty.
    """
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    tokens, rows, new, cache = list(prompt), [], prompt, None
    for _ in range(ANSWER_TOKENS):
        out = model(input_ids=torch.tensor([new], device=model.device), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0].float().cpu())
        new, cache = [int(rows[-1][-1].argmax())], out.past_key_values
        tokens += new
        if new[0] in stops:
            break
    return Reference(messages, tokens, len(prompt), tokens[-1] in stops, torch.cat(rows))


def logits_of(base: LoadedBase, tokens: list[int]) -> torch.Tensor:
    """llama.cpp's logits after each of the tokens, float32 (tokens, vocabulary)."""
    base.cache.clear()
    size = cpp.llama_vocab_n_tokens(base.tokenizer.vocab)
    rows = []
    for start in range(0, len(tokens), PROMPT_BATCH):
        part = tokens[start : start + PROMPT_BATCH]
        batch = cpp.llama_batch_init(len(part), 0, 1)
        try:
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if code := cpp.llama_decode(base.context, batch):
                raise LabError(f"{base.path.name} can't be computed (llama.cpp's code {code}): export it again.")
            # A copy: the next call writes into the same memory.
            rows.append(np.ctypeslib.as_array(cpp.llama_get_logits(base.context), (len(part), size)).copy())
        finally:
            cpp.llama_batch_free(batch)
    return torch.from_numpy(np.concatenate(rows))


def distances(reference: Reference, base: LoadedBase) -> tuple[torch.Tensor, torch.Tensor]:
    """At each position: KL(PyTorch || llama.cpp) in nats, and whether both put the same token first."""
    logits = logits_of(base, reference.tokens[:-1])
    size = min(logits.shape[1], reference.logits.shape[1])  # beyond is padding, which either may have more of
    ours, theirs = (part[:, :size].log_softmax(-1) for part in (reference.logits, logits))
    return (ours.exp() * (ours - theirs)).sum(-1), ours.argmax(-1) == theirs.argmax(-1)


def prompts_equal(base: LoadedBase, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[bool, bool]:
    """Whether llama.cpp's engine writes the prompt that transformers does, and gives it the same token ids."""
    text, ids = prompt_of(tokenizer, messages)  # anew, since a template may put the time into it
    try:
        return base.tokenizer.template.render(messages) == text, base.tokenizer.encode(messages) == ids
    except LabError:
        return False, False


def compare(
    tokenizer: PreTrainedTokenizerBase, known: list[Reference], gguf: Path, adapter: Path | None = None
) -> Parity:
    """Run what PyTorch was asked through a GGUF model, an adapter on it or none. `known` is `references`' result."""
    cpp.llama_backend_init()
    try:
        with Record() as log, closing(LoadedBase(gguf, compute_threads(), log)) as base:
            base.use_adapter(adapter)
            return measure(tokenizer, known, base)
    except LabError as error:
        return Parity(adapter and gguf.name, reason=str(error))


def measure(tokenizer: PreTrainedTokenizerBase, known: list[Reference], base: LoadedBase) -> Parity:
    """The figures of a loaded model, and whether they are good enough."""
    kl, same, alike, answers = [], [], [], 0
    for reference in known:
        nats, first = distances(reference, base)
        kl.append(nats)
        same.append(first)
        alike.append(prompts_equal(base, tokenizer, reference.messages))
        # Where each first choice after the prompt is the same, so is the answer, if it ends in the same place.
        ends = not reference.ended or cpp.llama_vocab_is_eog(base.tokenizer.vocab, reference.tokens[-1])
        answers += bool(first[reference.prompt - 1 :].all()) and ends
    kind = cpp.llama_model_ftype(base.model)
    figures = {
        "on": base.path.name if base.adapter else None,
        "quantization": cpp.llama_ftype_name(kind).decode(),
        "bits_per_weight": round(8 * cpp.llama_model_size(base.model) / cpp.llama_model_n_params(base.model), 2),
        "conversations": len(known),
        "positions": sum(map(len, kl)),
        "prompts": sum(text for text, _ in alike),
        "token_ids": sum(ids for _, ids in alike),
        "kl": float(f"{torch.cat(kl).double().mean():.3g}"),
        "top1": round(torch.cat(same).double().mean().item(), 4),
        "answers": answers,
    }
    reason = complaint(figures, LIMITS.get(kind, FOUR_BITS))
    return Parity(**figures, passed=not reason, reason=reason)


def complaint(figures: dict, limit: Limit) -> str:
    """What is not as it should be; empty where all is."""
    asked = figures["conversations"]
    found = []
    if figures["prompts"] < asked:
        found.append(f"{asked - figures['prompts']} of {asked} prompts differ from the tokenizer's chat template")
    if figures["token_ids"] < asked:
        found.append(f"{asked - figures['token_ids']} of {asked} prompts have other token ids")
    if not figures["kl"] <= limit.kl:  # not a number is no pass either
        found.append(f"KL divergence {figures['kl']:.3g} nats, more than {limit.kl:g}")
    if figures["top1"] < limit.top1:
        found.append(f"the top-1 agreement in {100 * figures['top1']:.1f} %, less than {100 * limit.top1:.0f} %")
    return "; ".join(found)


def check(folder: Path) -> dict[str, Parity]:
    """Compare each GGUF file of a model folder with its PyTorch model; the results by file name, also written into
    `run.json`. An adapter is held to the limits of f16 on an f16 base made for it; "adapter-f16.gguf on BASE" is what
    it is like on the base that it is served on. Raises LabError where there is nothing to compare."""
    run_record = read_run_record(folder)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise LabError(f"{folder} has no GGUF file: make it with `python -m training export {folder.name}`.")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
    if not tokenizer.chat_template:
        raise LabError(f"{folder.name} has no chat template: use an instruct model as base.")
    with step(f"asking {folder.name} in PyTorch"):
        known = references(folder, tokenizer)
    parities = {}
    for path in files:
        if path.name == f"{ADAPTER}.gguf":
            parities |= check_adapter(folder, path, tokenizer, known)
        else:
            with step(f"comparing {path.name}"):
                parities[path.name] = compare(tokenizer, known, path)
    run_record["parity"] = {name: asdict(parity) for name, parity in parities.items()}
    write_run_record(folder, run_record)
    return parities


def check_adapter(
    folder: Path, adapter: Path, tokenizer: PreTrainedTokenizerBase, known: list[Reference]
) -> dict[str, Parity]:
    """An adapter on its base in f16, and on the base's GGUF that it is served on where one can be had."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="parity-") as temporary:
        half = Path(temporary) / "base-f16.gguf"
        convert_model(base_folder(folder), half, "the base")
        with step(f"comparing {adapter.name}"):
            parities = {adapter.name: compare(tokenizer, known, half, adapter)}
    try:
        served = files_of(folder).base
    except LabError as error:
        typer.echo(f"{adapter.name} is not compared as it is served. {error}", err=True)
        return parities
    with step(f"comparing {adapter.name} on {served.name}"):
        parities[f"{adapter.name} on {served.name}"] = compare(tokenizer, known, served, adapter)
    return parities


def table(parities: dict[str, Parity]) -> str:
    """Files by figures as a Markdown table."""
    lines = [
        "| file | bits per weight | equal prompts, ids | KL (nats) | top-1 agreement | equal answers | parity |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, p in parities.items():
        cells = [""] * 5
        if p.kl is not None:
            prompts, answers = (f"{count} of {p.conversations}" for count in (min(p.prompts, p.token_ids), p.answers))
            cells = [f"{p.bits_per_weight:.1f}", prompts, f"{p.kl:.2g}", f"{100 * p.top1:.1f} %", answers]
        lines.append(f"| {name} | {' | '.join(cells)} | {'passed' if p.passed else p.reason} |")
    return "\n".join(lines)
