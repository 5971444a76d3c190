"""Unicode's emoji data as one small table, `emoji.tsv`. All questions are made from it.

The input is `emoji-test.txt` (UTS #51: the emoji and their groups) and CLDR's English annotations (names and keywords).
Debian's packages `unicode-data` and `unicode-cldr-core` install both. The table has one emoji a line, tab-separated:
emoji, name, group, subgroup, keywords (comma-separated, without the words of the name). It leaves out skin tones and
gendered variants, because their names differ by one word only.

`python -m training.data.emoji.unicode` makes the table again. Its licence is `LICENSE-UNICODE.txt`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("emoji.tsv")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
ANNOTATIONS = [
    Path("/usr/share/unicode/cldr/common") / folder / "en.xml" for folder in ("annotations", "annotationsDerived")
]
VARIATION_SELECTOR = "\ufe0f"


@dataclass(frozen=True)
class Emoji:
    """One emoji with its short name in CLDR ("panda", or "Sweden" for a flag) and its keywords."""

    text: str
    name: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]

    @property
    def is_flag(self) -> bool:
        """Whether it is the flag of a country, a territory or a part of a country."""
        return self.subgroup in ("country-flag", "subdivision-flag")


@cache
def emoji_table() -> tuple[Emoji, ...]:
    """All emoji of the table, in Unicode's order."""
    rows = (line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines())
    return tuple(
        Emoji(text, name, group, subgroup, tuple(filter(None, keywords.split(","))))
        for text, name, group, subgroup, keywords in rows
    )


def read_annotations(paths: list[Path]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """CLDR's names and keywords, each by emoji without variation selectors."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for path in paths:
        for node in ElementTree.parse(path).iter("annotation"):
            emoji = node.attrib["cp"].replace(VARIATION_SELECTOR, "")
            if node.get("type") == "tts":
                names[emoji] = node.text or ""
            else:
                keywords[emoji] = [word.strip() for word in (node.text or "").split("|")]
    return names, keywords


def build_table(emoji_test: Path, annotations: list[Path]) -> list[Emoji]:
    """The rows of the table, from Unicode's files."""
    names, keywords = read_annotations(annotations)
    rows: list[Emoji] = []
    group = subgroup = ""
    for line in emoji_test.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        match = re.match(r"([0-9A-F ]+); fully-qualified +# \S+ E\S+ (.+)", line)
        if not match or "skin tone" in line:
            continue
        emoji = "".join(chr(int(code, 16)) for code in match[1].split())
        bare = emoji.replace(VARIATION_SELECTOR, "")
        name = names.get(bare, match[2])
        if "\u200d" in emoji and re.match(r"(man|woman|men|women|family|couple|kiss|person)\b", name):
            continue
        name = name.removeprefix("flag: ") if subgroup.endswith("-flag") else name
        own = set(re.findall(r"\w+", name.lower()))
        words = [w for w in keywords.get(bare, []) if w and not set(re.findall(r"\w+", w.lower())) <= own]
        rows.append(Emoji(emoji, name.replace("“", "").replace("”", ""), group, subgroup, tuple(words)))
    return rows


if __name__ == "__main__":
    table = build_table(EMOJI_TEST, ANNOTATIONS)
    TABLE.write_text(
        "".join("\t".join([e.text, e.name, e.group, e.subgroup, ",".join(e.keywords)]) + "\n" for e in table),
        encoding="utf-8",
    )
    print(f"{len(table)} emoji written to {TABLE.name}")
