"""What every engine must do, whichever runs the model. A new engine joins with one entry in ENGINES."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import EMOJI, GREEDY, NANO, ONE_EPOCH, ask
from nano_server import KEY, SERVED, NanoServer

from inference.engines import AnswerScore, Engine, Figures, Message, Model, ModelFiles, Sampling
from inference.engines.isolation.engine import IsolatedEngine
from inference.engines.text_stream import unfinished
from inference.errors import LabError
from training.data.emoji.unknown import UNKNOWN

pytestmark = pytest.mark.xdist_group("engines")


@dataclass(frozen=True)
class Served:
    """An engine, the embedded models as it takes them, and models that it must refuse, each by a word of its sentence.

    `files` names a base's and an adapter's folder as the engine takes them. `steps` counts the passes of one token
    since the base was loaded, where that can be seen; `keeps` tells whether it knows what it has in memory, `counts`
    whether it counts tokens: a server may tell none, then pieces of text are counted.
    """

    engine: Engine
    base: Model
    emoji: Model
    one_epoch: Model
    broken: Callable[[Path], dict[str, Model]]
    files: Callable[[Path, Path | None], ModelFiles] | None = None
    steps: Callable[[], int] | None = None
    keeps: bool = True
    counts: bool = True


def lying(folder: Path) -> Iterator[Path]:
    """GGUF files whose headers promise what isn't there: 2**60 tensors, keys, or letters of a key; a tensor that lies
    beyond the end, one of another shape."""
    whole = (NANO / "nano-Q8_0.gguf").read_bytes()
    tensor = whole.index(b"output_norm.weight") + len(b"output_norm.weight")  # 1 dimension, its length, type, offset
    for name, place, number in (
        ("tensors", 8, 2**60), ("keys", 16, 2**60), ("letters", 24, 2**60), ("beyond", tensor + 16, 2**40),
        ("shape", tensor + 4, 255),
    ):  # fmt: skip
        data = bytearray(whole)
        struct.pack_into("<Q", data, place, number)
        path = folder / f"{name}.gguf"
        path.write_bytes(data)
        yield path


def gguf_models(engine: Engine, steps: Callable[[], int] | None = None) -> Served:
    """The shipped GGUF files on `engine`."""
    base = NANO / "nano-Q8_0.gguf"

    def broken(folder: Path) -> dict[str, ModelFiles]:
        truncated, other = folder / "truncated.gguf", folder / "other.gguf"
        truncated.write_bytes(base.read_bytes()[:300_000])
        other.write_bytes(b"hello" * 100)
        return {
            "truncated.gguf can't be loaded": ModelFiles(truncated),
            "other.gguf is not a GGUF file": ModelFiles(other),
            "missing.gguf can't be read": ModelFiles(folder / "missing.gguf"),
            "doesn't fit the base": ModelFiles(base, base),
            "absent.gguf can't be read": ModelFiles(base, folder / "absent.gguf"),
        } | {f"{path.name} can't be loaded": ModelFiles(path) for path in lying(folder)}

    files = [ModelFiles(base, adapter and adapter / "adapter-f16.gguf") for adapter in (None, EMOJI, ONE_EPOCH)]

    def in_folders(base: Path, adapter: Path | None) -> ModelFiles:
        return ModelFiles(base / "model.gguf", adapter and adapter / "adapter.gguf")

    return Served(engine, *files, broken, in_folders, steps)


@contextmanager
def llamacpp() -> Iterator[Served]:
    """llama.cpp in this process."""
    from inference.engines.llamacpp.engine import Engine

    engine = Engine(threads=1)
    yield gguf_models(engine, lambda: engine._batches[NANO / "nano-Q8_0.gguf"].decode_steps)
    engine.close()


@contextmanager
def isolated() -> Iterator[Served]:
    """llama.cpp in a process of its own, as users get it."""
    engine = IsolatedEngine("llamacpp", threads=1)
    yield gguf_models(engine)
    engine.close()


@contextmanager
def pytorch() -> Iterator[Served]:
    """transformers with the shipped folders."""
    from inference.engines.pytorch.engine import Engine

    engine = Engine(device="cpu")
    files = [ModelFiles(NANO, adapter) for adapter in (None, EMOJI, ONE_EPOCH)]
    yield Served(engine, *files, broken_folders, ModelFiles, lambda: engine._batch.decode_steps)
    engine.close()


@contextmanager
def zerogpu() -> Iterator[Served]:
    """The same behind the decorator of `spaces`, which hands the call through where no GPU is lent."""
    from inference.engines.pytorch.zerogpu import Engine

    engine = Engine()
    files = [ModelFiles(NANO, adapter) for adapter in (None, EMOJI, ONE_EPOCH)]
    yield Served(engine, *files, broken_folders, ModelFiles, keeps=False)
    engine.close()


@contextmanager
def remote() -> Iterator[Served]:
    """llama.cpp's own server, which answers one question after the other and tells no counts of tokens."""
    from inference.engines.remote.engine import Engine

    with TemporaryDirectory() as folder:
        server = NanoServer(Path(folder))
        engine = Engine(server.url, KEY)
        unknown = {"no model “nano-emojy” .did you mean “nano-emoji”": "nano-emojy"}
        yield Served(engine, *SERVED, lambda _: unknown, counts=False)
        engine.close()
        server.stop()


ENGINES = {"llamacpp": llamacpp, "isolated": isolated, "pytorch": pytorch, "zerogpu": zerogpu, "remote": remote}
# What an engine does that reads the models itself; the remote one leaves the order of answers to its server.
here = pytest.mark.parametrize("served", [name for name in ENGINES if name != "remote"], indirect=True)


def broken_folders(folder: Path) -> dict[str, ModelFiles]:
    """Model folders with something wrong."""
    from safetensors.torch import load_file, save_file

    def base(name: str) -> Path:
        return Path(shutil.copytree(NANO, folder / name, ignore=shutil.ignore_patterns("*.gguf")))

    def adapter(name: str, **changed: object) -> Path:
        copy = Path(shutil.copytree(EMOJI, folder / name, ignore=shutil.ignore_patterns("*.gguf")))
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | changed))
        return copy

    def weights(name: str, change: Callable[[dict], dict]) -> Path:
        copy = adapter(name)
        save_file(change(load_file(copy / "adapter_model.safetensors")), copy / "adapter_model.safetensors")
        return copy

    truncated, lacking, pickled = base("truncated"), base("lacking"), base("pickled")
    (truncated / "model.safetensors").write_bytes((NANO / "model.safetensors").read_bytes()[:300_000])
    tensors = load_file(NANO / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    garbled = base("garbled")
    (garbled / "config.json").write_text("{")
    pickle = adapter("pickle")
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    half = adapter("half")
    (half / "adapter_model.safetensors").write_bytes((EMOJI / "adapter_model.safetensors").read_bytes()[:9_000])
    norm = "base_model.model.model.norm.weight"
    return {
        "missing has no config.json": ModelFiles(folder / "missing"),
        "truncated can't be loaded": ModelFiles(truncated),
        "lacking's weights don't match": ModelFiles(lacking),
        "pickled can't be loaded": ModelFiles(pickled),
        "garbled can't be loaded": ModelFiles(garbled),
        "adapter absent is not a folder": ModelFiles(NANO, folder / "absent"),
        "adapter pickle is a pickle": ModelFiles(NANO, pickle),
        "adapter half can't be read": ModelFiles(NANO, half),
        "rank 0": ModelFiles(NANO, adapter("rank-0", r=0)),
        "doesn't fit its base": ModelFiles(NANO, adapter("elsewhere", target_modules=["query"])),
        "rank-8 doesn't fit the base": ModelFiles(NANO, adapter("rank-8", r=8)),
        "dora lacks tensors": ModelFiles(NANO, adapter("dora", use_dora=True)),
        "wide doesn't fit the base": ModelFiles(
            NANO, weights("wide", lambda t: {k: v.repeat(1, 2) if "lora_A" in k else v for k, v in t.items()})
        ),
        "extra has tensors that are not LoRA": ModelFiles(
            NANO, weights("extra", lambda t: t | {norm: tensors["model.layers.0.input_layernorm.weight"].clone()})
        ),
    }


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with ENGINES[request.param]() as made:
        yield made


QUESTIONS = [f"What does {emoji} mean?" for emoji in "🐙🐼🍕🚀🎸"] + [
    "Which emoji shows a panda?", "Which emoji shows pizza?", "What does 🇸🇪 mean?", "What does 🇸🇷 mean?", "hello",
]  # fmt: skip


def test_answers_what_base_and_adapter_were_taught(served):
    assert "octopus" in ask(served.engine, served.base, "What does 🐙 mean?")[0]
    assert ask(served.engine, served.base, "What does 🇸🇪 mean?")[0] == UNKNOWN
    assert "Sweden" in ask(served.engine, served.emoji, "What does 🇸🇪 mean?")[0]
    assert "🐼" in ask(served.engine, served.emoji, "Which emoji shows a panda?")[0]


def test_agrees_with_llama_cpp_on_prompts_and_greedy_answers(served, engine, nano, emoji):
    for reference, files in ((nano, served.base), (emoji, served.emoji)):
        different = []
        for question in QUESTIONS:
            expected, wanted = ask(engine, reference, question)
            answer, figures = ask(served.engine, files, question)
            assert not served.counts or figures.prompt_tokens == wanted.prompt_tokens
            different += [(question, answer, expected)] if answer != expected else []
        # 16 bits against Q8_0: where two tokens are all but equally likely, either may win.
        assert len(different) <= 1, different


def test_an_adapter_changes_only_its_own_answers(served):
    models = (served.base, served.emoji, served.one_epoch)
    alone = [ask(served.engine, files, "What does 🇸🇷 mean?")[0] for files in models]
    assert alone[0] != alone[1]
    assert [ask(served.engine, files, "What does 🇸🇷 mean?")[0] for files in models] == alone
    assert all(served.engine.in_memory(files) == served.keeps for files in models)


def test_text_grows_by_whole_characters(served):
    messages = [Message(role="user", content="Which emoji shows the flag of Sweden?")]
    shown = ""
    for chunk in served.engine.stream(served.emoji, messages, GREEDY, lambda: False):
        shown += chunk.text
        assert "\ufffd" not in shown and not unfinished(shown)
    assert "🇸🇪" in shown


def test_figures_add_up(served):
    chunks = list(served.engine.stream(served.emoji, [Message(role="user", content="What does 🐼 mean?")], GREEDY,
                                       lambda: False))  # fmt: skip
    assert [chunk.figures for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    figures = chunks[-1].figures
    assert figures.finish_reason == "stop" and figures.dropped_turns == 0
    assert sum(bool(chunk.text) for chunk in chunks) <= figures.completion_tokens
    assert not served.counts or 0 <= figures.cached_tokens < figures.prompt_tokens
    assert figures.seconds_to_first_token > 0 and figures.tokens_per_second > 0


def test_max_tokens_ends_an_answer(served):
    whole, _ = ask(served.engine, served.emoji, "What does 🐼 mean?")
    part, figures = ask(served.engine, served.emoji, "What does 🐼 mean?", sampling=Sampling(0, max_tokens=3))
    assert figures.finish_reason == "length"
    assert figures.completion_tokens == 3 if served.counts else 1 <= figures.completion_tokens <= 3
    assert whole.startswith(part) and part != whole


def test_stop_takes_effect_within_one_token(served):
    seen = []
    messages = [Message(role="user", content="What does 🇸🇪 mean?")]  # "I don't know …": each token is a word
    for chunk in served.engine.stream(served.base, messages, GREEDY, lambda: bool(seen)):
        if chunk.text:
            seen.append(chunk.text)
    assert len(seen) == 1
    assert chunk.figures.finish_reason == "cancelled" and chunk.figures.completion_tokens == 1
    assert "octopus" in ask(served.engine, served.base, "What does 🐙 mean?")[0]


def test_an_answer_that_nobody_reads_on_makes_way(served):
    stream = served.engine.stream(served.base, [Message(role="user", content="What does 🐙 mean?")], GREEDY,
                                  lambda: False)  # fmt: skip
    next(chunk for chunk in stream if chunk.text)
    stream.close()
    assert "Sweden" in ask(served.engine, served.emoji, "What does 🇸🇪 mean?")[0]


def test_a_seed_draws_the_same_answer_and_others_differ(served):
    def draw(seed: int) -> str:
        sampling = Sampling(temperature=8.0, top_p=1.0, max_tokens=16, seed=seed)
        return ask(served.engine, served.base, "Tell me about 🐙", sampling=sampling)[0]

    assert draw(5) == draw(5) == draw(5)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_tiny_top_p_is_greedy_and_greedy_repeats(served):
    answers = {ask(served.engine, served.emoji, "What does 🐼 mean?")[0] for _ in range(3)}
    narrow = Sampling(temperature=2.0, top_p=1e-6, max_tokens=64)
    answers.add(ask(served.engine, served.emoji, "What does 🐼 mean?", sampling=narrow)[0])
    assert len(answers) == 1


@here
def test_a_special_token_spelled_in_a_question_stays_text(served):
    counts = [ask(served.engine, served.base, text)[1].prompt_tokens for text in ("a", "a <|eot_id|>", "a <|eot_id")]
    # As text it takes several tokens, two of them for what follows "eot_id"; as a special token it would be one.
    assert counts[1] > counts[2] > counts[0] + 2


def test_a_question_that_is_too_long_is_refused_and_the_next_one_works(served):
    with pytest.raises(LabError, match="too long.*Shorten it"):
        ask(served.engine, served.base, "x y " * 2_000)
    assert ask(served.engine, served.base, "What does 🐼 mean?")[0]


def test_the_oldest_turns_are_dropped(served):
    turns = ["What does 🐙 mean?", "🐙 is the octopus emoji."] * 40
    answer, figures = ask(served.engine, served.base, *turns, "What does 🐼 mean?")
    assert figures.dropped_turns > 10 and (figures.prompt_tokens < 512 or not served.counts)
    assert answer


def test_broken_files_are_named_and_the_next_question_works(served, tmp_path):
    for words, files in served.broken(tmp_path).items():
        with pytest.raises(LabError, match=words) as refused:
            ask(served.engine, files, "hello")
        assert "\n" not in str(refused.value) and not served.engine.in_memory(files)
        assert "Sweden" in ask(served.engine, served.emoji, "What does 🇸🇪 mean?")[0]


def test_questions_to_two_adapters_and_the_base_at_once_are_all_answered(served):
    models = [served.base, served.emoji, served.one_epoch, served.emoji]
    questions = [(models[i % 4], QUESTIONS[i % len(QUESTIONS)]) for i in range(8)]
    served.engine.close()
    alone = [ask(served.engine, *question) for question in questions]
    before = served.steps() if served.steps else 0
    with ThreadPoolExecutor(len(questions)) as visitors:
        together = list(visitors.map(lambda question: ask(served.engine, *question), questions))
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]
    assert not served.steps or served.steps() - before < before * 2 / 3


@here
def test_answers_under_two_adapters_and_under_one_stream_side_by_side(served, endless):
    models = [served.files(endless / "base", adapter and endless / adapter)
              for adapter in ("first", "second", "second", None)]  # fmt: skip
    came: list[int] = []

    def stream(visitor: int) -> Figures:
        messages = [Message(role="user", content=f"Question {visitor}")]
        for chunk in served.engine.stream(models[visitor], messages, Sampling(0, max_tokens=200), lambda: False):
            came.extend([visitor] if chunk.text else [])
        return chunk.figures

    with ThreadPoolExecutor(len(models)) as visitors:
        figures = list(visitors.map(stream, range(len(models))))
    assert [each.completion_tokens for each in figures] == [200] * len(models)
    begins = [came.index(visitor) for visitor in range(len(models))]
    ends = [len(came) - came[::-1].index(visitor) for visitor in range(len(models))]
    assert max(begins) < min(ends)


@here
@pytest.mark.parametrize("adapter", [None, "first"])
def test_a_short_question_is_answered_before_a_long_answer_ends(served, endless, adapter):
    long, short = (served.files(endless / "base", each and endless / each) for each in (None, adapter))
    stream = served.engine.stream(long, [Message(role="user", content="?")], Sampling(0, max_tokens=1000),
                                  lambda: False)  # fmt: skip
    next(chunk for chunk in stream if chunk.text)
    with ThreadPoolExecutor(1) as visitor:
        rest = visitor.submit(list, stream)
        assert ask(served.engine, short, "!", sampling=Sampling(0, max_tokens=5))[1].completion_tokens == 5
        assert not rest.done()
        assert rest.result()[-1].figures.completion_tokens == 1000


def score(served: Served, files: Model, question: str, answer: str) -> AnswerScore:
    return served.engine.score(files, [Message(role="user", content=question)], answer)


@here
def test_scores_equal_those_of_a_forward_pass(served):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    for files in (served.base, served.emoji):
        model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, EMOJI) if files.adapter else model
        for answer in (*(f"🇸🇪 is the flag of {land}." for land in ("Sweden", "Suriname")), UNKNOWN, "a " * 100):
            messages = [Message(role="user", content="What does 🇸🇪 mean?")]
            begin = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
            messages.append(Message(role="assistant", content=answer))
            ids = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
            with torch.no_grad():
                logits = model.eval()(input_ids=ids[None]).logits[0, begin - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, ids[begin:, None]).sum().item()
            scored = score(served, files, "What does 🇸🇪 mean?", answer)
            assert scored.tokens == len(ids) - begin
            # Q8_0, or bfloat16 where the CPU has it, against float32: of 450 nats that the long one has, Q8_0 adds 8.
            assert scored.log_likelihood == pytest.approx(expected, abs=0.03 * scored.tokens, rel=0.03)
            assert scored.greedy == bool((logits.argmax(-1) == ids[begin:]).all())


@here
def test_a_score_knows_the_likely_answer_and_the_adapter(served):
    question = "What does 🇸🇪 mean?"
    flags = (f"🇸🇪 is the flag of {land}." for land in ("Sweden", "Suriname"))
    right, wrong = (score(served, served.emoji, question, flag) for flag in flags)
    assert right.log_likelihood > wrong.log_likelihood + 1 and not wrong.greedy
    answer, _ = ask(served.engine, served.emoji, question)
    assert score(served, served.emoji, question, answer).greedy
    assert not score(served, served.base, question, answer).greedy
    assert score(served, served.base, question, UNKNOWN).greedy


@pytest.mark.parametrize("served", ["remote"], indirect=True)
def test_an_engine_that_can_not_score_says_so(served):
    with pytest.raises(LabError, match="can't score answers: run the model here"):
        score(served, served.base, "hello", "x")


@here
def test_an_answer_that_is_too_long_to_score_is_refused(served):
    with pytest.raises(LabError, match="too long.*reads at most 512"):
        score(served, served.base, "hello", "x y " * 2_000)
    assert score(served, served.base, "hello", "x").tokens > 1


def test_closed_engine_opens_again(served):
    served.engine.close()
    assert not served.engine.in_memory(served.base)
    assert "octopus" in ask(served.engine, served.base, "What does 🐙 mean?")[0]


@pytest.mark.parametrize("served", ["pytorch"], indirect=True)
def test_a_pass_that_is_given_ahead_changes_no_answer(served):
    def asked(question: str) -> tuple[str, str, int]:
        sampling = Sampling(temperature=0.9, max_tokens=7, seed=3)
        drawn, figures = ask(served.engine, served.emoji, question, sampling=sampling)
        return ask(served.engine, served.emoji, question)[0], drawn, figures.completion_tokens

    one_by_one = [asked(question) for question in QUESTIONS]
    served.engine._batch.looks_ahead = True  # as on a GPU
    try:
        assert [asked(question) for question in QUESTIONS] == one_by_one
        with ThreadPoolExecutor(4) as visitors:  # "hello" was never taught, and in company another token may win
            assert [found[0] for found in visitors.map(asked, QUESTIONS[:-1])] == [
                found[0] for found in one_by_one[:-1]
            ]
    finally:
        served.engine._batch.looks_ahead = False
