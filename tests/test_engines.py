"""The conformance suite: behaviour that all engines share. A new engine joins with one entry in ENGINES."""

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
from fleet_run import Fleet
from nano_server import KEY, SERVED, NanoServer

from inference.engines import AnswerScore, Engine, Figures, Message, Model, ModelFiles, Sampling
from inference.engines.isolation.engine import IsolatedEngine
from inference.engines.text_stream import unfinished
from inference.errors import LabError
from training.data.emoji.unknown import UNKNOWN

pytestmark = pytest.mark.xdist_group("engines")


@dataclass(frozen=True)
class Subject:
    """An engine under test with the embedded models in the form that it takes.

    Attributes:
        broken: creates models that the engine must refuse, by a part of the error message.
        files: gives the model for the folders of a base and an adapter.
        steps: the number of passes of one token since the base was loaded, if it is known.
        keeps: whether the engine knows which models are in memory.
        counts: whether it counts tokens. If a server does not, parts of the text are counted.
        server: whether a server's own rules apply: it penalizes the words of the question, too.
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
    server: bool = False


def with_wrong_headers(folder: Path) -> Iterator[Path]:
    """GGUF files with one wrong number in the header: 2**60 tensors, keys, or letters of a key; a tensor beyond the end
    of the file; a tensor of another shape."""
    valid = (NANO / "nano-Q8_0.gguf").read_bytes()
    tensor = valid.index(b"output_norm.weight") + len(b"output_norm.weight")  # 1 dimension, its length, type, offset
    for name, place, number in (
        ("tensors", 8, 2**60), ("keys", 16, 2**60), ("letters", 24, 2**60), ("beyond", tensor + 16, 2**40),
        ("shape", tensor + 4, 255),
    ):  # fmt: skip
        data = bytearray(valid)
        struct.pack_into("<Q", data, place, number)
        path = folder / f"{name}.gguf"
        path.write_bytes(data)
        yield path


def gguf_models(engine: Engine, steps: Callable[[], int] | None = None) -> Subject:
    """The embedded GGUF files on `engine`."""
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
        } | {f"{path.name} can't be loaded": ModelFiles(path) for path in with_wrong_headers(folder)}

    files = [ModelFiles(base, adapter and adapter / "adapter-f16.gguf") for adapter in (None, EMOJI, ONE_EPOCH)]

    def in_folders(base: Path, adapter: Path | None) -> ModelFiles:
        return ModelFiles(base / "model.gguf", adapter and adapter / "adapter.gguf")

    return Subject(engine, *files, broken, in_folders, steps)


@contextmanager
def llamacpp() -> Iterator[Subject]:
    """llama.cpp in this process."""
    from inference.engines.llamacpp.engine import Engine

    engine = Engine(threads=1)
    yield gguf_models(engine, lambda: engine._batches[NANO / "nano-Q8_0.gguf"].decode_steps)
    engine.close()


@contextmanager
def isolated() -> Iterator[Subject]:
    """llama.cpp in a process of its own, as users run it."""
    engine = IsolatedEngine("llamacpp", threads=1)
    yield gguf_models(engine)
    engine.close()


@contextmanager
def pytorch() -> Iterator[Subject]:
    """transformers with the embedded folders."""
    from inference.engines.pytorch.engine import Engine

    engine = Engine(device="cpu")
    files = [ModelFiles(NANO, adapter) for adapter in (None, EMOJI, ONE_EPOCH)]
    yield Subject(engine, *files, broken_folders, ModelFiles, lambda: engine._batch.decode_steps)
    engine.close()


@contextmanager
def zerogpu() -> Iterator[Subject]:
    """The same behind the decorator of `spaces`, which only calls the function if there is no ZeroGPU."""
    from inference.engines.pytorch.zerogpu import Engine

    engine = Engine()
    files = [ModelFiles(NANO, adapter) for adapter in (None, EMOJI, ONE_EPOCH)]
    yield Subject(engine, *files, broken_folders, ModelFiles, keeps=False)
    engine.close()


@contextmanager
def remote() -> Iterator[Subject]:
    """llama.cpp's own server, which answers one question at a time and counts no tokens."""
    from inference.engines.remote.engine import Engine

    with TemporaryDirectory() as folder:
        server = NanoServer(Path(folder))
        engine = Engine(server.url, KEY)
        unknown = {"no model “nano-emojy” .did you mean “nano-emoji”": "nano-emojy"}
        yield Subject(engine, *SERVED, lambda _: unknown, counts=False, server=True)
        engine.close()
        server.stop()


@contextmanager
def vllm(fleet: Fleet) -> Iterator[Subject]:
    """vLLM's server: two of them behind their router."""
    from inference.engines.remote.engine import Engine

    engine = Engine(fleet.settings.router_url, None)
    unknown = {"no model “nano-emojy” .did you mean “nano-emoji”": "nano-emojy"}
    yield Subject(engine, *SERVED, lambda _: unknown, server=True)
    engine.close()


ENGINES = {"llamacpp": llamacpp, "isolated": isolated, "pytorch": pytorch, "zerogpu": zerogpu, "remote": remote}
ENGINES |= {"vllm": vllm}
# For engines that run the models themselves. The server of a remote one decides on the order of answers.
LOCAL = [name for name in ENGINES if name not in ("remote", "vllm")]
local_engines = pytest.mark.parametrize("subject", LOCAL, indirect=True)
scoring_engines = pytest.mark.parametrize("subject", [*LOCAL, "vllm"], indirect=True)


def broken_folders(folder: Path) -> dict[str, ModelFiles]:
    """Model folders with one error each, by a part of the error message."""
    from safetensors.torch import load_file, save_file

    def base(name: str) -> Path:
        return Path(shutil.copytree(NANO, folder / name, ignore=shutil.ignore_patterns("*.gguf")))

    def adapter(name: str, **fields: object) -> Path:
        copy = Path(shutil.copytree(EMOJI, folder / name, ignore=shutil.ignore_patterns("*.gguf")))
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | fields))
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
        "dora uses “use_dora”": ModelFiles(NANO, adapter("dora", use_dora=True)),
        "wide doesn't fit the base": ModelFiles(
            NANO, weights("wide", lambda t: {k: v.repeat(1, 2) if "lora_A" in k else v for k, v in t.items()})
        ),
        "extra has tensors that are not LoRA": ModelFiles(
            NANO, weights("extra", lambda t: t | {norm: tensors["model.layers.0.input_layernorm.weight"].clone()})
        ),
    }


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    fleet = [request.getfixturevalue("fleet")] if request.param == "vllm" else []
    with ENGINES[request.param](*fleet) as made:
        yield made


QUESTIONS = [f"What does {emoji} mean?" for emoji in "🐙🐼🍕🚀🎸"] + [
    "Which emoji shows a panda?", "Which emoji shows pizza?", "What does 🇸🇪 mean?", "What does 🇸🇷 mean?", "hello",
]  # fmt: skip


def test_answers_what_base_and_adapter_learned(subject):
    assert "octopus" in ask(subject.engine, subject.base, "What does 🐙 mean?")[0]
    assert ask(subject.engine, subject.base, "What does 🇸🇪 mean?")[0] == UNKNOWN
    assert "Sweden" in ask(subject.engine, subject.emoji, "What does 🇸🇪 mean?")[0]
    assert "🐼" in ask(subject.engine, subject.emoji, "Which emoji shows a panda?")[0]


def test_agrees_with_llama_cpp_on_prompts_and_greedy_answers(subject, engine, nano, emoji):
    for reference, files in ((nano, subject.base), (emoji, subject.emoji)):
        different = []
        for question in QUESTIONS:
            expected, wanted = ask(engine, reference, question)
            answer, figures = ask(subject.engine, files, question)
            assert not subject.counts or figures.prompt_tokens == wanted.prompt_tokens
            different += [(question, answer, expected)] if answer != expected else []
        # 16 bits against Q8_0: if two tokens are almost equally likely, either may be chosen.
        assert len(different) <= 1, different


def test_an_adapter_changes_only_its_own_answers(subject):
    models = (subject.base, subject.emoji, subject.one_epoch)
    alone = [ask(subject.engine, files, "What does 🇸🇷 mean?")[0] for files in models]
    assert alone[0] != alone[1]
    assert [ask(subject.engine, files, "What does 🇸🇷 mean?")[0] for files in models] == alone
    assert all(subject.engine.in_memory(files) == subject.keeps for files in models)


STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5)


def at_strength(strength: float) -> Sampling:
    return Sampling(temperature=0, max_tokens=48, strength=strength)


@local_engines
def test_strength_0_is_the_base_and_1_the_adapter_and_both_load_nothing_new(subject):
    question = "What does 🇸🇷 mean?"
    base, adapter = (ask(subject.engine, files, question)[0] for files in (subject.base, subject.emoji))
    assert ask(subject.engine, subject.emoji, question, sampling=at_strength(0))[0] == base
    assert ask(subject.engine, subject.emoji, question, sampling=at_strength(1))[0] == adapter
    assert ask(subject.engine, subject.base, question, sampling=at_strength(0.5))[0] == base  # it has no adapter
    assert subject.engine.in_memory(subject.emoji) == subject.keeps


@local_engines
def test_each_strength_in_a_batch_gives_its_own_answer_and_reads_no_other_ones_cache(subject):
    question = "What does 🇸🇷 mean?"
    subject.engine.close()
    alone = {}
    for strength in STRENGTHS:
        alone[strength], figures = ask(subject.engine, subject.emoji, question, sampling=at_strength(strength))
        assert not figures.cached_tokens
    assert len(set(alone.values())) >= 3, alone
    with ThreadPoolExecutor(len(STRENGTHS)) as visitors:
        together = visitors.map(
            lambda strength: ask(subject.engine, subject.emoji, question, sampling=at_strength(strength))[0], STRENGTHS
        )
        assert dict(zip(STRENGTHS, together, strict=True)) == alone


@pytest.mark.parametrize("subject", ["remote", "vllm"], indirect=True)
def test_a_remote_server_takes_no_strength(subject):
    with pytest.raises(LabError, match="set the strength to 1"):
        ask(subject.engine, subject.emoji, "hello", sampling=at_strength(0.5))


def test_text_grows_by_complete_characters(subject):
    messages = [Message(role="user", content="Which emoji shows the flag of Sweden?")]
    shown = ""
    for chunk in subject.engine.stream(subject.emoji, messages, GREEDY, lambda: False):
        shown += chunk.text
        assert "\ufffd" not in shown and not unfinished(shown)
    assert "🇸🇪" in shown


def test_figures_add_up(subject):
    chunks = list(subject.engine.stream(subject.emoji, [Message(role="user", content="What does 🐼 mean?")], GREEDY,
                                       lambda: False))  # fmt: skip
    assert [chunk.figures for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    figures = chunks[-1].figures
    assert figures.finish_reason == "stop" and figures.dropped_turns == 0
    assert sum(bool(chunk.text) for chunk in chunks) <= figures.completion_tokens
    assert not subject.counts or 0 <= figures.cached_tokens < figures.prompt_tokens
    assert figures.seconds_to_first_token > 0 and figures.tokens_per_second > 0


def test_max_tokens_ends_an_answer(subject):
    complete, _ = ask(subject.engine, subject.emoji, "What does 🐼 mean?")
    part, figures = ask(subject.engine, subject.emoji, "What does 🐼 mean?", sampling=Sampling(0, max_tokens=3))
    assert figures.finish_reason == "length"
    assert figures.completion_tokens == 3 if subject.counts else 1 <= figures.completion_tokens <= 3
    assert complete.startswith(part) and part != complete


def test_stop_takes_effect_within_one_token(subject):
    seen = []
    messages = [Message(role="user", content="What does 🇸🇪 mean?")]  # "I don't know …": each token is a word
    for chunk in subject.engine.stream(subject.base, messages, GREEDY, lambda: bool(seen)):
        if chunk.text:
            seen.append(chunk.text)
    assert len(seen) == 1
    assert chunk.figures.finish_reason == "cancelled" and chunk.figures.completion_tokens == 1
    assert "octopus" in ask(subject.engine, subject.base, "What does 🐙 mean?")[0]


def test_an_answer_that_is_no_longer_read_frees_its_place(subject):
    stream = subject.engine.stream(subject.base, [Message(role="user", content="What does 🐙 mean?")], GREEDY,
                                  lambda: False)  # fmt: skip
    next(chunk for chunk in stream if chunk.text)
    stream.close()
    assert "Sweden" in ask(subject.engine, subject.emoji, "What does 🇸🇪 mean?")[0]


def test_a_seed_draws_the_same_answer_and_others_differ(subject):
    temperature = 2.0 if subject.server else 8.0  # vLLM's limit; the nano is sure of its words

    def draw(seed: int) -> str:
        sampling = Sampling(temperature, top_p=1.0, max_tokens=16, seed=seed)
        return ask(subject.engine, subject.base, "Tell me about 🐙", sampling=sampling)[0]

    assert draw(5) == draw(5) == draw(5)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_the_narrowest_top_p_top_k_and_min_p_are_greedy_and_greedy_repeats(subject):
    answers = {ask(subject.engine, subject.emoji, "What does 🐼 mean?")[0] for _ in range(3)}
    for narrow in ({"top_p": 1e-6}, {"top_p": 1.0, "top_k": 1}, {"top_p": 1.0, "min_p": 1.0}):
        sampling = Sampling(temperature=2.0, max_tokens=64, **narrow)
        answers.add(ask(subject.engine, subject.emoji, "What does 🐼 mean?", sampling=sampling)[0])
    assert len(answers) == 1


def test_an_answer_ends_before_a_stop_string_and_keeps_the_beginning_of_one(subject):
    complete, _ = ask(subject.engine, subject.emoji, "What does 🐼 mean?")
    stop = complete[5:9]  # begins and ends inside of tokens
    sampling = Sampling(0, max_tokens=64, stop=("never", stop))
    answer, figures = ask(subject.engine, subject.emoji, "What does 🐼 mean?", sampling=sampling)
    assert answer == complete[: complete.index(stop)] and figures.finish_reason == "stop"
    sampling = Sampling(0, max_tokens=64, stop=(complete[-3:] + "!",))
    assert ask(subject.engine, subject.emoji, "What does 🐼 mean?", sampling=sampling)[0] == complete


def test_the_repeat_penalty_changes_answers_as_in_llama_cpp(subject, engine, emoji):
    questions = ["Which emoji shows a panda?", "Which emojis show pizza, panda and pizza?", "🐼🐼🐼"]
    sampling = Sampling(0, max_tokens=24, repeat_penalty=2)  # without it, words come twice
    answers = [ask(subject.engine, subject.emoji, question, sampling=sampling)[0] for question in questions]
    assert answers != [ask(subject.engine, subject.emoji, question)[0] for question in questions]
    if not subject.server:
        expected = [ask(engine, emoji, question, sampling=sampling)[0] for question in questions]
        assert sum(a != b for a, b in zip(answers, expected, strict=True)) <= 1, (answers, expected)


@local_engines
def test_a_special_token_spelled_in_a_question_stays_text(subject):
    counts = [ask(subject.engine, subject.base, text)[1].prompt_tokens for text in ("a", "a <|eot_id|>", "a <|eot_id")]
    # As text it takes several tokens, two of them for what follows "eot_id"; as a special token it would be one.
    assert counts[1] > counts[2] > counts[0] + 2


def test_a_question_that_is_too_long_is_refused_and_the_next_one_works(subject):
    with pytest.raises(LabError, match="too long.*Shorten it"):
        ask(subject.engine, subject.base, "x y " * 2_000)
    assert ask(subject.engine, subject.base, "What does 🐼 mean?")[0]


def test_the_oldest_turns_are_dropped(subject):
    turns = ["What does 🐙 mean?", "🐙 is the octopus emoji."] * 40
    answer, figures = ask(subject.engine, subject.base, *turns, "What does 🐼 mean?")
    assert figures.dropped_turns > 10 and (figures.prompt_tokens < 512 or not subject.counts)
    assert answer


def test_broken_files_are_named_and_the_next_question_works(subject, tmp_path):
    for message, files in subject.broken(tmp_path).items():
        with pytest.raises(LabError, match=message) as refused:
            ask(subject.engine, files, "hello")
        assert "\n" not in str(refused.value) and not subject.engine.in_memory(files)
        assert "Sweden" in ask(subject.engine, subject.emoji, "What does 🇸🇪 mean?")[0]


def test_questions_to_two_adapters_and_the_base_at_once_are_all_answered(subject):
    models = [subject.base, subject.emoji, subject.one_epoch, subject.emoji]
    questions = [(models[i % 4], QUESTIONS[i % len(QUESTIONS)]) for i in range(8)]
    subject.engine.close()
    alone = [ask(subject.engine, *question) for question in questions]
    before = subject.steps() if subject.steps else 0
    with ThreadPoolExecutor(len(questions)) as visitors:
        together = list(visitors.map(lambda question: ask(subject.engine, *question), questions))
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]
    assert not subject.steps or subject.steps() - before < before * 2 / 3


@local_engines
def test_answers_stream_at_once_under_two_adapters_and_without(subject, endless):
    models = [subject.files(endless / "base", adapter and endless / adapter)
              for adapter in ("first", "second", "second", None)]  # fmt: skip
    for files in models:  # the isolated engine starts a process for each folder that it has not seen
        ask(subject.engine, files, "hello", sampling=Sampling(0, max_tokens=1))
    arrivals: list[int] = []

    def stream(visitor: int) -> Figures:
        messages = [Message(role="user", content=f"Question {visitor}")]
        for chunk in subject.engine.stream(models[visitor], messages, Sampling(0, max_tokens=200), lambda: False):
            arrivals.extend([visitor] if chunk.text else [])
        return chunk.figures

    with ThreadPoolExecutor(len(models)) as visitors:
        figures = list(visitors.map(stream, range(len(models))))
    assert [each.completion_tokens for each in figures] == [200] * len(models)
    begins = [arrivals.index(visitor) for visitor in range(len(models))]
    ends = [len(arrivals) - arrivals[::-1].index(visitor) for visitor in range(len(models))]
    assert max(begins) < min(ends)


@local_engines
@pytest.mark.parametrize("adapter", [None, "first"])
def test_a_short_question_is_answered_before_a_long_answer_ends(subject, endless, adapter):
    long, short = (subject.files(endless / "base", each and endless / each) for each in (None, adapter))
    stream = subject.engine.stream(long, [Message(role="user", content="?")], Sampling(0, max_tokens=1000),
                                  lambda: False)  # fmt: skip
    next(chunk for chunk in stream if chunk.text)
    with ThreadPoolExecutor(1) as visitor:
        rest = visitor.submit(list, stream)
        assert ask(subject.engine, short, "!", sampling=Sampling(0, max_tokens=5))[1].completion_tokens == 5
        assert not rest.done()
        assert rest.result()[-1].figures.completion_tokens == 1000


def score(subject: Subject, files: Model, question: str, answer: str) -> AnswerScore:
    return subject.engine.score(files, [Message(role="user", content=question)], answer)


@scoring_engines
def test_scores_equal_those_of_a_forward_pass(subject):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    for files, adapter in ((subject.base, None), (subject.emoji, EMOJI)):
        model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        for answer in (*(f"🇸🇪 is the flag of {land}." for land in ("Sweden", "Suriname")), UNKNOWN, "a " * 100):
            messages = [Message(role="user", content="What does 🇸🇪 mean?")]
            begin = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
            messages.append(Message(role="assistant", content=answer))
            ids = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
            with torch.no_grad():
                logits = model.eval()(input_ids=ids[None]).logits[0, begin - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, ids[begin:, None]).sum().item()
            scored = score(subject, files, "What does 🇸🇪 mean?", answer)
            assert scored.tokens == len(ids) - begin
            # Q8_0 or bfloat16 against float32: Q8_0 adds 8 to the 450 nats of the long answer.
            assert scored.log_likelihood == pytest.approx(expected, abs=0.03 * scored.tokens, rel=0.03)
            assert scored.greedy == bool((logits.argmax(-1) == ids[begin:]).all())


@scoring_engines
def test_a_likely_answer_scores_higher_and_depends_on_the_adapter(subject):
    question = "What does 🇸🇪 mean?"
    flags = (f"🇸🇪 is the flag of {land}." for land in ("Sweden", "Suriname"))
    right, wrong = (score(subject, subject.emoji, question, flag) for flag in flags)
    assert right.log_likelihood > wrong.log_likelihood + 1 and not wrong.greedy
    answer, _ = ask(subject.engine, subject.emoji, question)
    assert score(subject, subject.emoji, question, answer).greedy
    assert not score(subject, subject.base, question, answer).greedy
    assert score(subject, subject.base, question, UNKNOWN).greedy


@pytest.mark.parametrize("subject", ["remote"], indirect=True)
def test_llamacpps_server_cannot_score(subject):
    with pytest.raises(LabError, match="can't score answers, because .* run the model here"):
        score(subject, subject.base, "hello", "x")


@scoring_engines
@pytest.mark.parametrize("tokens", [1, 6])
def test_an_answer_that_was_cut_is_continued(subject, tokens):
    question = Message(role="user", content="What does 🐼 mean?")
    complete, _ = ask(subject.engine, subject.emoji, question["content"])
    cut, figures = ask(subject.engine, subject.emoji, question["content"], sampling=Sampling(0, max_tokens=tokens))
    assert figures.finish_reason == "length"
    messages = [question, Message(role="assistant", content=cut)] if cut else [question]
    rest = subject.engine.stream(subject.emoji, messages, GREEDY, lambda: False)
    assert cut + "".join(chunk.text for chunk in rest) == complete


@scoring_engines
def test_an_answer_that_is_too_long_to_score_is_refused(subject):
    with pytest.raises(LabError, match="too long.*(reads at most 512|Shorten it)"):
        score(subject, subject.base, "hello", "x y " * 2_000)
    assert score(subject, subject.base, "hello", "x").tokens > 1


def test_a_closed_engine_opens_again(subject):
    subject.engine.close()
    assert not subject.engine.in_memory(subject.base)
    assert "octopus" in ask(subject.engine, subject.base, "What does 🐙 mean?")[0]


@pytest.mark.parametrize("subject", ["pytorch"], indirect=True)
def test_launching_a_pass_ahead_changes_no_answer(subject):
    def answers(question: str) -> tuple[str, str, int]:
        sampling = Sampling(temperature=0.9, max_tokens=7, seed=3)
        drawn, figures = ask(subject.engine, subject.emoji, question, sampling=sampling)
        return ask(subject.engine, subject.emoji, question)[0], drawn, figures.completion_tokens

    one_by_one = [answers(question) for question in QUESTIONS]
    subject.engine._batch.looks_ahead = True  # as on a GPU
    try:
        assert [answers(question) for question in QUESTIONS] == one_by_one
        with ThreadPoolExecutor(4) as visitors:  # "hello" was not in the training data, so a batch may change it
            assert [found[0] for found in visitors.map(answers, QUESTIONS[:-1])] == [
                found[0] for found in one_by_one[:-1]
            ]
    finally:
        subject.engine._batch.looks_ahead = False
