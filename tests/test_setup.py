"""What sets up a machine: the browser is found or its absence is one sentence, and CI accepts no skipped test."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import command

from inference import settings
from inference.errors import LabError
from inference.settings import PROJECT
from scripts.browser import find_browser


def write_program(path: Path, exit_code: int) -> Path:
    """A program that does nothing but end with an exit code."""
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_first_browser_that_starts_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write_program(tmp_path / "chromium", 1)  # such as Ubuntu's, which only asks to install a snap
    chrome = write_program(tmp_path / "google-chrome", 0)
    assert find_browser() == str(chrome)


def test_without_a_browser_one_sentence_says_so_and_the_exit_code_is_0(tmp_path):
    unreachable = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = command("scripts.browser", PATH=str(tmp_path), PLAYWRIGHT_BROWSERS_PATH=str(tmp_path), **unreachable)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("There is no Chromium: the tests of the page are skipped.")


def test_a_skipped_test_fails_in_ci_only(tmp_path):
    file = tmp_path / "test_skipped.py"
    file.write_text("import pytest\n\ndef test_skipped():\n    pytest.skip('a tool is missing')\n", encoding="utf-8")
    arguments = ["pytest", "-n", "0", "-p", "conftest", "--rootdir", str(tmp_path), str(file)]
    here = command(*arguments, PYTHONPATH="tests", CI="")
    assert here.returncode == 0 and "1 skipped" in here.stdout
    in_ci = command(*arguments, PYTHONPATH="tests", CI="true")
    assert in_ci.returncode == 1 and "a tool is missing" in in_ci.stdout and "1 failed" in in_ci.stdout


def test_old_versions_are_reported_in_one_sentence(monkeypatch):
    assert f'requires-python = ">={settings.dotted(settings.PYTHON)}"' in (PROJECT / "pyproject.toml").read_text(
        "utf-8"
    )
    settings.check_versions()
    monkeypatch.setattr(settings, "version", lambda _: "2.8.0+cu128")
    with pytest.raises(
        LabError, match=r"torch 2.11 or newer is needed and 2.8.0\+cu128 is installed: run `pip install"
    ):
        settings.check_versions()
    monkeypatch.setattr(settings.sys, "version_info", (3, 10, 13))
    with pytest.raises(LabError, match=r"Python 3.11 or newer is needed and this is 3.10: set up with `PYTHON="):
        settings.check_versions()
