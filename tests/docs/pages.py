"""README.md and docs/*.md as a reader meets them: commands, links, and the names of files.

A block fenced as ```sh is run by the tests, from top to bottom of its page, in a fresh copy of the repository. All
other blocks, the indented ones, may be transcripts or need a cloud: what in them is a command is held to the real
command line.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.names import job_names

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])

_FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"`((?:trainer|storage|watchers|console|launch|bench|make|tests|docs)/[\w./-]*[\w/])`")
_ENDS = {"&&", "||", "|", ";", "&", ">", ">>", "<", "#"}


@dataclass(frozen=True)
class Line:
    """A command as it stands on a page."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def to_run(page: Path) -> str:
    """The page's script; "" where it has none."""
    return "".join(block for block in _FENCE.findall(page.read_text()))


def documents(page: Path) -> list[str]:
    """The page's JSON, as one would paste it into a file."""
    return _JSON.findall(page.read_text())


def commands(page: Path) -> Iterator[Line]:
    """Every command of its blocks, each in words, up to a pipe or the like; lines continued by a backslash are one."""
    blocks = [line[4:] for line in page.read_text().splitlines() if line.startswith("    ")]
    text = "\n".join([*blocks, to_run(page)]).replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            words = list(lexer)
        except ValueError:
            continue  # prose or output with a lone quote
        while words:
            end = next((i for i, word in enumerate(words) if word in _ENDS), len(words))
            if words[:end]:
                yield Line(page.name, tuple(words[:end]))
            words = words[end + 1 :]


def arguments(line: Line) -> list[str] | None:
    """What this command gives to Baton's own command line; None where it is another program's."""
    words = list(line.words)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if len(words) > 1 and re.fullmatch(r"(.*/)?python3?", words[0]) and words[1].endswith("entrypoint.py"):
        return words[2:]
    if words[:2] == ["docker", "run"]:
        image = next((i for i, word in enumerate(words) if re.fullmatch(r"baton:[a-z]+|IMAGE", word)), None)
        return None if image is None else words[image + 1 :]
    return None


def runs_a_job_for_gpus(line: Line) -> bool:
    """Whether it is `docker run` of a job by an image that computes on GPUs where it is let."""
    if line.words[:2] != ("docker", "run"):
        return False
    image = next((i for i, word in enumerate(line.words) if word in ("baton:cuda", "IMAGE")), len(line.words))
    return bool({*line.words[image + 1 : image + 2]} & {*job_names()})


def links(page: Path) -> Iterator[str]:
    """Relative links, with their anchors."""
    return (link for link in _LINK.findall(page.read_text()) if "://" not in link)


def files(page: Path) -> Iterator[str]:
    """Files and folders of the repository that it names."""
    return iter(_FILE.findall(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def shown_use(job: str) -> str:
    """The lines with which docs/jobs.md makes a network of a result."""
    page = (REPOSITORY / "docs" / "jobs.md").read_text()
    part = page.partition(f"\n## {job}\n")[2].partition("\n## ")[0]
    found = re.search(r"^\*\*Result\.\*\*(?:.+\n)+\n((?:    .+\n)+)", part, re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found[1])
