"""Spoken answers: what is spoken of an answer, and the sound of it."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from inference.errors import LabError
from inference.speech import decode
from inference.voice import Voice, speakable, wav_bytes
from inference.voice.reader import MAX_SENTENCE, REST

pytestmark = [pytest.mark.xdist_group("speech")]


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice()


@pytest.mark.parametrize(
    ("markdown", "spoken"),
    [
        ("# Title\n\nHello **world**, see [the docs](https://a.b/c).", ["Title.", "Hello world, see the docs."]),
        ("Go to https://www.example.com/x?y=1#z", ["Go to example dot com."]),
        ("1. One\n2. ~~Two~~\n\n- three", ["1: One.", "2: Two.", "three."]),
        ("Before\n```python\nprint(1)\n```\nAfter `snake_case`", ["Before.", "Code is left out.", "After snake case."]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["a, b.", "1, 2."]),
        ("<think>It is a\n\npanda.</think>🐼🐼 👍🏽!", ["panda thumbs up!"]),
        ("the template opened it</think>Yes <b>bold</b> &amp; R&D", ["Yes bold & R&D."]),
        ("<think>not finished", []),
        ("It costs $5 and $10.", ["It costs $5 and $10."]),
        ("$E = mc^2$ and \\(\\alpha_i\\)", ["E equals m c squared and alpha sub i."]),
        ("$$\\sum_{i=1}^n \\frac{a}{b}$$", ["the sum over i equals 1 up to n of a over b."]),
        ("$$2 \\leq \\sqrt{x}$$", ["2 is at most the square root of x."]),
        ("$$\\begin{pmatrix}1\\end{pmatrix}$$", ["a formula."]),
        ("![a cat](http://a.b/c.png)", ["a cat."]),
        ("x\ud800\u202ey \\[a\\](/b/) :-)", ["xy a (/b/) :-)."]),
        ("!!! --- ***", []),
    ],
)  # fmt: skip
def test_words_are_spoken_and_no_markup(markdown, spoken):
    assert speakable(markdown) == spoken


def test_an_answer_is_spoken_sentence_by_sentence(voice):
    spoken = list(voice.speak("A panda eats bamboo. It lives in **China**."))
    assert [rate for rate, _ in spoken] == [24_000, 24_000]
    for rate, sound in spoken:
        assert sound.dtype == np.float32 and sound.ndim == 1 and 0.1 < np.abs(sound).max() <= 1
        assert 1 < sound.size / rate < 4
    rate, sound = spoken[0]
    found = decode(wav_bytes(rate, sound))
    assert found.seconds == pytest.approx(sound.size / rate, abs=0.01) and np.abs(found.samples).max() > 0.1
    assert voice.say("Faster.", speed=2.0)[1].size < voice.say("Faster.", speed=0.5)[1].size


def test_a_growing_answer_keeps_its_finished_sentences(voice):
    answer = "A panda eats bamboo. It lives in China. Its emoji is 🐼."
    spoken: list[str] = []
    for end in range(len(answer)):
        spoken += voice.sentences(answer[:end], complete=False)[len(spoken) :]
    assert spoken + voice.sentences(answer)[len(spoken) :] == voice.sentences(answer)
    assert len(spoken) == 2


@pytest.mark.parametrize("hostile", ["word ", "[", "a", "*a ", "1\n- "])
def test_a_long_text_is_cut_and_says_so(voice, hostile):
    sentences = voice.sentences(hostile * (100_000 // len(hostile)))
    assert len(sentences) < 400 and max(map(len, sentences), default=0) <= MAX_SENTENCE
    assert not sentences or sentences[-1] == REST


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("熊猫是一种动物，它吃竹子。", "speaks only English"),
        ("Der Panda ist ein Tier, das in China lebt und Bambus frisst.", "speaks only English"),
        ("Le panda est un animal qui vit en Chine et mange du bambou.", "speaks only English"),
        ("", "nothing to read aloud"),
        ("<think>only a thought</think> ***", "nothing to read aloud"),
    ],
)
def test_what_cannot_be_spoken_is_one_sentence(voice, text, sentence):
    with pytest.raises(LabError, match=sentence):
        next(voice.speak(text))


def test_a_missing_package_is_one_sentence_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(LabError, match="package hibari is missing: run pip install -r requirements.txt"):
        next(Voice().speak("Hello."))


def test_many_visitors_take_turns(voice):
    sounds: list[int] = []
    threads = [threading.Thread(target=lambda: sounds.append(voice.say("Take turns.")[1].size)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sounds) == 8 and len(set(sounds)) == 1
