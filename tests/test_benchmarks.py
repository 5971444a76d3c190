"""Each benchmark runs to its end on the nano models, and `python -m benchmarks` prints one table."""

from __future__ import annotations

import multiprocessing
import re

import pytest
from conftest import assert_refused, command
from processes import context, start_server

from benchmarks.__main__ import BENCHMARKS, GPU
from benchmarks.report import Unavailable, measure

pytestmark = pytest.mark.xdist_group("benchmarks")  # one after another: each wants the cores for itself


@pytest.fixture
def forks(monkeypatch):
    """Processes that import the libraries start as forks; the commands of a benchmark start as a user's."""
    start_server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_gives_figures(name, forks):
    try:
        figures = measure(name, quick=True)
    except Unavailable as reason:
        needed = {
            "transcription_errors": "espeak-ng", "llama_server": "llama-server", "page_in_browser": "Chromium",
            "fleet": "vLLM",
        }  # fmt: skip
        assert needed[name] in str(reason)
        return
    assert figures and all(re.search(r"\d", figure.value) for figure in figures)
    assert len({figure.what for figure in figures}) == len(figures)


def test_one_table_with_machine_and_versions_and_the_reason_of_what_does_not_run_here():
    done = command("benchmarks", "transcription_errors", "concurrency", "--quick", PATH="")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "python -m benchmarks transcription_errors concurrency --quick" in lines[0]
    assert all(
        re.search(pattern, done.stdout) for pattern in (r"- Date: \d{4}-", r"\d+ cores", r"torch \d", r"gradio \d")
    )
    assert lines.count("| benchmark | what | measured | expected |") == 1
    assert any(line.startswith("| transcription_errors | not run here | It needs espeak-ng") for line in lines)
    assert any(re.match(r"\| concurrency \| questions at once: 2; .* \| [\d,]+, [\d,]+ \|", line) for line in lines)
    assert "[2/2] concurrency: done" in done.stderr


def test_a_benchmark_that_fails_is_listed_and_does_not_stop_the_others():
    done = command("benchmarks", "page_start", "concurrency", "--quick", CATALOG="/nowhere/catalog.yaml")
    assert done.returncode == 1
    assert "| page_start | failed | RuntimeError: app.py ended" in done.stdout
    assert "| concurrency | questions at once: 1" in done.stdout


def test_without_a_gpu_its_benchmarks_are_listed_with_the_reason():
    done = command("benchmarks", "--gpu", CUDA_VISIBLE_DEVICES="")
    rows = [line for line in done.stdout.splitlines() if line.endswith("| not run here | It needs an NVIDIA GPU. |  |")]
    assert done.returncode == 0 and len(rows) == len(GPU), done.stderr


def test_an_unknown_benchmark_is_refused():
    assert_refused(command("benchmarks", "concurency"), "no benchmark “concurency”", "concurrency")
