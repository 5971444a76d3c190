"""The documentation matches the code: generated parts, links, length of the README, packages, and plain words."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from inference.settings import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("adapters/*/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```|^    .*?$", re.MULTILINE | re.DOTALL)

# Private words and the field's own ones. A word may be part of an identifier: letters alone bound it.
WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"(go|goes|going|went|gone) on (where|with|from|elsewhere|anywhere)|goes on": "resume",
    r"(kept|keeps?|keeping) apart": "held out",
    r"(can('|no)t|can|could|to) be had|why_not": "not available",
    r"(is|are|was|were) away": "unreachable",
    r"(the )?ears": "speech recognition",
    r"hear(d(?! (Island|& Mc))|s|ing)?": "transcribe, transcript",
    r"so-manieth": "every n-th",
    r"receipts?": "run record, parity report",
    r"(base|hub)_sentences": "translate_base_errors, translate_hub_errors",
    r"(same|equal|different|other) first choices?": "top-1 agreement",
    r"telling how far": "progress",
    r"answers? that (is|are) scored": "scored completion",
    r"anew": "again",
    r"what there is": "the list of models",
    r"\b(asking|contrast|findings|served|hearing|ears|summary)\.py": "a module that is named after what it does",
    r"(?<!gradient_)(?<!gradient )accumulation(?=[=:\"`”])": "gradient_accumulation",
}
CASED = {r"Listener|Listening|Served": "Transcriber, TranscriptionProgress, ResolvedModel"}
# Text that models are asked or taught, and files that say how the old words are read.
DATA = {
    "inference/doctor/conversations.yaml",
    "training/data/emoji/phrasing.py",
    "training/nano/conversations.py",
}
OLD_KEY = {
    "CHANGELOG.md",
    "docs/train.md",
    "inference/run_records.py",
    "tests/test_plan.py",
}
SCANNED = (".py", ".md", ".yaml", ".yml", ".jinja", ".css", ".js", ".ipynb", ".toml")


def tracked() -> list[Path]:
    """The project's own text files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name.endswith(SCANNED) or name == "Makefile"]
    return [PROJECT / name for name in names if (PROJECT / name).is_file() and name != "tests/test_docs.py"]


def name_of(path: Path) -> str:
    """A file as seen from the project."""
    return path.relative_to(PROJECT).as_posix()


def test_generated_parts_are_up_to_date() -> None:
    """`make docs` would change nothing."""
    pages = [str(path) for path in PROJECT.glob("docs/*.md")]
    result = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", *pages], cwd=PROJECT, capture_output=True, text=True
    )
    assert result.returncode == 0, f"Run `make docs`, then commit the pages.\n{result.stdout}{result.stderr}"


def test_readme_fits_one_screen() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    """Each relative link names a file, and each fragment a heading in it."""
    broken = [link for link in links(page) if not resolves(page, link)]
    assert not broken


def links(page: Path) -> Iterator[str]:
    """The relative links of a page, those in code left out."""
    for link in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", link):
            yield link


def resolves(page: Path, link: str) -> bool:
    """Whether a link leads to a file and, if it has a fragment, to a heading."""
    path, _, fragment = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not fragment:
        return target.exists()
    headings = HEADING.findall(target.read_text(encoding="utf-8")) if target.is_file() else []
    return fragment in [anchor(heading) for heading in headings]


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (PROJECT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in PROJECT.glob("docs/*.md")} - {"README.md"}
    assert pages <= set(LINK.findall(contents))


def test_the_architecture_names_what_exists() -> None:
    """Each class that the page names is defined, and so is the method."""
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in tracked() if path.suffix == ".py"]
    for name, _, method in re.findall(r"`([A-Z][a-z]\w+)(\.(\w+))?`", page):
        defining = [source for source in sources if re.search(rf"^class {name}\b", source, re.MULTILINE)]
        assert defining, name
        assert not method or any(f"    def {method}(" in source for source in defining), f"{name}.{method}"


def test_every_package_has_a_reason() -> None:
    """docs/dependencies.md names each required package, and no other."""
    files = [file.read_text(encoding="utf-8") for file in PROJECT.glob("requirements*.txt")]
    names = {name for text in files for name in re.findall(r"^([A-Za-z][\w.-]*)(?:\[.*\])?==", text, re.MULTILINE)}
    page = (PROJECT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert names == explained


def test_version_is_in_the_changelog() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_words_are_plain() -> None:
    """Code, documentation and page use the field's own words."""
    found = []
    for path in tracked():
        name, text = name_of(path), path.read_text(encoding="utf-8")
        if name in DATA:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{name}:{number}: “{word}”, not {better}" for word, better in private_words(line, name)]
    assert not found, "\n" + "\n".join(found)


def private_words(line: str, name: str) -> Iterator[tuple[str, str]]:
    """The private words of a line, with what to write instead."""
    for flags, words in ((re.IGNORECASE, WORDS), (0, CASED)):
        for pattern, better in words.items():
            match = re.search(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", line, flags)
            if match and not ("accumulation" in match[0] and name in OLD_KEY):
                yield match[0], better
