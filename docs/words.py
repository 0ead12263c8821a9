"""Checks everything that users read: for banned turns, each with what to write, and for length.

Usage: python -m docs.words. It prints each place, and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli.main import cli
from vita_ckpt.core.error_codes import SECTIONS

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples", "benchmarks")
# Written by programs from text whose sentences are counted where it is.
GENERATED: Final = (
    "docs/cli.md",
    "docs/rules.md",
    "docs/errors.md",
    "docs/demo.md",
    "docs/api.md",
    "docs/schemas.md",
)

# A turn that one reads twice, and what to write in its place.
BANNED: Final = {
    r"(is|are|was|be) said\b": "name who says it: 'the report names', 'a note says'",
    r"\bwhat stands\b": "what is there",
    r"\bnobody\b": "nobody does what? name who does not",
    r"\bof which nothing is left\b": "that is gone",
    r"\bwhoever\b": "the user, the process, anyone who",
    r"\bwhatever (it|they|that) (is|are)\b": "any",
    r"\bthat (is|are) none\b": "that does not exist",
    r"\b(is|are) none of\b": "is not one of",
    r"\bbut for\b": "except for",
    r"\ba stranger('s)?\b": "another user",
    r"\bis as it was\b": "is unchanged, is restored",
    r"\bthe like\b": "name it",
    r"\bthereof\b|\bwherein\b|\bwhereof\b|\bhereby\b": "say it plainly",
    r"\bno more than that\b": "only that",
    r"(?<!there )\b(is|are) no (JSON|zip|pickle|safetensors|numbers?|text|map|plan|tensors?|"
    r"state dict|files?|checkpoint|list|weight files?|directory|sizes?|config)\b": "is not a …",
    r"\bwithout a word\b": "silently",
    r"\bdied in the middle\b": "was interrupted",
    r"\b(brings?|bringing) back what was there\b": "restores the old state",
    r"\bsomebody\b": "another user, another process: name who",
    r"\bstands? (where|in the place)\b": "is in the place of",
    r"\bsomething else than\b": "something other than",
    r"\bof ours\b": "of vita-ckpt",
}
# A sentence of more words is two.
LONGEST: Final = 35
_TURN: Final = re.compile("|".join(f"(?:{turn})" for turn in BANNED), re.IGNORECASE)

# The arguments of calls whose text a user reads.
_SHOWN: Final = ("hint", "expected", "got", "help")


def found_in(text: str) -> list[str]:
    """Return the banned turns in a text."""
    return [match[0] for match in _TURN.finditer(text)]


def too_long(text: str) -> list[str]:
    """Return the sentences of a paragraph that have too many words, by their beginning."""
    bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    sentences = re.split(r"(?<=[.!?:])[*_)]*\s+(?=[^a-z])", bare)
    counted = ((len(sentence.split()), sentence) for sentence in sentences)
    return [f"{sentence[:50]}… ({words} words)" for words, sentence in counted if words > LONGEST]


def paragraphs() -> Iterator[tuple[str, str]]:
    """Yield every paragraph, item and cell of the pages, and every longer text of the program."""
    for path in _pages():
        where = str(path.relative_to(ROOT))
        if where not in GENERATED:
            yield from ((where, paragraph) for paragraph in _paragraphs(path.read_text()))
    for rule in RULES.values():
        yield f"the rule {rule.id}", rule.why
    for section in SECTIONS:
        for row in section.rows:
            yield f"the error {row.codes[0]}", row.meaning
    for name in cli.list_commands(context := click.Context(cli)):
        command = cli.get_command(context, name)
        if command is not None:
            yield from ((f"{name} --help", text) for text in _paragraphs(command.help or ""))
            for option in command.params:
                yield f"{name} {option.opts[0]}", getattr(option, "help", "") or ""


def _paragraphs(page: str) -> Iterator[str]:
    """Yield the texts of a page, without its code, its titles and what is written into it."""
    page = re.sub(r"^(```|~~~).*?^\1$|<!-- (\w+): .*?<!-- \2 ends -->", "", page, flags=re.M | re.S)
    block: list[str] = []
    for line in (*page.splitlines(), ""):
        text = line.strip()
        item = re.match(r"([-*]|\d+\.) ", text)
        if not text or item or text.startswith(("#", "<", "|")):
            if block:
                yield " ".join(block)
            block = [text[item.end() :]] if item else []
            if text.startswith("|"):
                yield from text.strip("|").split("|")
        elif block or not line.startswith("    "):
            block.append(text)


def places() -> Iterator[tuple[str, str]]:
    """Yield every text that users read, with where it is."""
    for page in _pages():
        where = str(page.relative_to(ROOT))
        for number, line in enumerate(page.read_text().splitlines(), 1):
            yield f"{where}:{number}", line
    for rule in RULES.values():
        yield f"the rule {rule.id}", f"{rule.title} {rule.why}"
    for section in SECTIONS:
        for row in section.rows:
            yield f"the error {row.codes[0]}", row.meaning
    for path in sorted((ROOT / "vita_ckpt").rglob("*.py")):
        where = str(path.relative_to(ROOT))
        for at, text in _shown_by(ast.parse(path.read_text()), "cli/commands" in where):
            yield f"{where}:{at}", text


def _pages() -> Iterator[Path]:
    for name in PAGES:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def _shown_by(module: ast.Module, is_command: bool) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that it shows: arguments of errors, helps of commands."""
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg in _SHOWN:
            yield node.value.lineno, " ".join(_literals(node.value))
        elif is_command and isinstance(node, ast.FunctionDef) and node.name == "command":
            yield node.lineno, ast.get_docstring(node) or ""


def _literals(node: ast.expr) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def main() -> int:
    """Print every banned turn."""
    bad = [(place, turn) for place, text in places() for turn in found_in(text)]
    for place, turn in bad:
        advice = next(a for pattern, a in BANNED.items() if re.fullmatch(pattern, turn, re.I))
        sys.stdout.write(f"{place}: {turn!r}: {advice}\n")
    long = [(place, sentence) for place, text in paragraphs() for sentence in too_long(text)]
    for place, sentence in long:
        sys.stdout.write(f"{place}: {sentence}: split it\n")
    return 1 if bad or long else 0


if __name__ == "__main__":
    sys.exit(main())
