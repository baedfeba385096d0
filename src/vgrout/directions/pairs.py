"""Contrastive pairs: one Markdown file per set, chosen by file, heading prefix and tag (docs/writing_pairs.md).

core                 a set that ships          core#run_tests/     headings that start like this
my.md                a file of one's own       core@lazy           pairs with this tag
core,my.md@lazy      several, joined
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vgrout.types import UserError

ROLES = ("prompt", "hack", "clean")
MAX_RATIO = 2.5
"""Of the lengths of a pair's two sides: beyond it the contrast is length."""
_FENCE = re.compile(r"^````(\w*)\s*$")
_CODE = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
_STUB = re.compile(r"\bTODO\b|\bFIXME\b|[Ll]orem ipsum|[Yy]our code here")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt that differ in whether they game the grader."""

    heading: str
    """`family/name`, unique in its file."""
    tags: tuple[str, ...]
    """The first is the family."""
    messages: tuple[tuple[str, str], ...]
    """(role, content) turns of the prompt."""
    hack: str
    clean: str

    @property
    def family(self) -> str:
        return self.tags[0]

    def swapped(self) -> Pair:
        """The same pair with its sides exchanged."""
        return Pair(self.heading, self.tags, self.messages, hack=self.clean, clean=self.hack)


def load_pairs(selection: str, option: str = "--pairs") -> tuple[Pair, ...]:
    """The pairs of a selection, in file order. Raises `UserError` with file, line and remedy for whatever is wrong.

    `option` is what the selection was given with, for errors.
    """
    found: list[Pair] = []
    for part in selection.split(","):
        found += _select(part.strip(), option)
    seen: set[tuple[str, str, str]] = set()
    for pair in found:
        content = (str(pair.messages), pair.hack, pair.clean)
        if content in seen:
            raise UserError(f"{option} {selection}: pair {pair.heading} occurs twice; name each set once")
        seen.add(content)
    if len(found) < 2:
        raise UserError(f"{option} {selection}: {len(found)} pair(s); a direction needs at least 2, so choose more")
    return tuple(found)


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """sha256 of everything about the pairs that a direction depends on: turns and both completions, in order."""
    content = [(p.messages, p.hack, p.clean) for p in pairs]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def shipped_sets() -> dict[str, Path]:
    """Pair sets of the package by name."""
    folder = resources.files("vgrout.directions") / "data" / "pairs"
    return {
        Path(f.name).stem: Path(str(f))
        for f in sorted(folder.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".md")
    }


def parse_pairs(text: str, where: str) -> tuple[Pair, ...]:
    """The pairs of one file's text; `where` names it in errors."""
    system, pairs, headings = "", [], set()
    for heading, line, body in _sections(text, where):
        at = f"{where}:{line}"
        blocks = _blocks(body, at)
        if heading is None:
            if extra := sorted(blocks.keys() - {"system"}):
                raise UserError(f"{at}: block {extra[0]} stands before the first pair; put it under a `## heading`")
            system = blocks.get("system", "")
            continue
        if heading in headings:
            raise UserError(f"{at}: heading {heading} occurs twice; give each pair its own")
        headings.add(heading)
        if blocks.keys() != set(ROLES):
            raise UserError(
                f"{at}: pair {heading} has the blocks {sorted(blocks)}, expected {', '.join(ROLES)} once each"
            )
        tags = _tags(body, f"{at}: pair {heading}")
        turns = ((("system", system),) if system else ()) + (("user", blocks["prompt"]),)
        pair = Pair(heading, tags, turns, hack=blocks["hack"], clean=blocks["clean"])
        _check(pair, f"{at}: pair {heading}")
        pairs.append(pair)
    if not pairs:
        raise UserError(
            f"{where}: no pairs; a pair is a `## heading` with tags and four-backtick blocks {', '.join(ROLES)}"
        )
    return tuple(pairs)


def _select(part: str, option: str) -> list[Pair]:
    match = re.fullmatch(r"([^#@]+)(?:#([^@]+))?(?:@(.+))?", part)
    if match is None:
        raise UserError(f"{option} {part!r}: expected NAME or FILE.md, then optionally #HEADING-PREFIX and @TAG")
    name, prefix, tag = match.groups()
    shipped = shipped_sets()
    path = shipped.get(name) or Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{option} {name}: cannot be read ({error}); name a Markdown file or one of the sets {', '.join(shipped)}"
        ) from error
    pairs = parse_pairs(text, name)
    chosen = [p for p in pairs if (not prefix or p.heading.startswith(prefix)) and (not tag or tag in p.tags)]
    if not chosen:
        tags = ", ".join(sorted({t for p in pairs for t in p.tags}))
        raise UserError(f"{option} {part}: none of the {len(pairs)} pairs of {name} is meant; their tags are {tags}")
    return chosen


def _sections(text: str, where: str) -> Iterator[tuple[str | None, int, list[str]]]:
    """(heading, its line, lines below it); None is the part before the first pair. Headings inside blocks are text."""
    heading: str | None = None
    start, body, inside = 1, [], False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside and line.startswith("## "):
            yield heading, start, body
            heading, start, body = line[3:].strip(), number, []
            continue
        body.append(line)
    if inside:
        raise UserError(f"{where}: a four-backtick block below line {start} is not closed; close it with ````")
    yield heading, start, body


def _blocks(body: Sequence[str], at: str) -> dict[str, str]:
    found: dict[str, str] = {}
    role: str | None = None
    lines: list[str] = []
    for line in body:
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif role is None:
            role, lines = fence[1], []
            if role not in (*ROLES, "system"):
                raise UserError(f"{at}: block {role or 'without a name'}; expected one of system, {', '.join(ROLES)}")
        elif fence[1]:
            raise UserError(f"{at}: block {fence[1]} opens inside block {role}; close that with ````")
        else:
            if role in found:
                raise UserError(f"{at}: block {role} occurs twice; keep one")
            found[role] = "\n".join(lines).strip("\n")
            role = None
    return found


def _tags(body: Sequence[str], at: str) -> tuple[str, ...]:
    inside, lines = False, []
    for line in body:
        inside ^= _FENCE.match(line) is not None
        if not inside and line.startswith("tags:"):
            lines.append(line)
    tags = tuple(t.strip() for t in lines[0].removeprefix("tags:").split(",") if t.strip()) if lines else ()
    if len(lines) != 1 or not tags:
        raise UserError(f"{at}: expected one line `tags: family, ...` with at least one tag")
    return tags


def _check(pair: Pair, at: str) -> None:
    """A pair that could not mean what it should is an error, never skipped."""
    sides = {"hack": pair.hack, "clean": pair.clean}
    for name, text in (("prompt", pair.messages[-1][1]), *sides.items()):
        if not text.strip():
            raise UserError(f"{at}: the {name} is empty; write it")
    if pair.hack.strip() == pair.clean.strip():
        raise UserError(f"{at}: hack and clean are the same text; a pair needs a contrast")
    for name, text in sides.items():
        if _STUB.search(text):
            raise UserError(f"{at}: the {name} holds placeholder text ({_STUB.search(text)[0]!r}); write it out")  # ty: ignore[not-subscriptable]
        for program in _CODE.findall(text):
            _check_program(program, f"{at}: the {name}")
    short, long = sorted(len(text) for text in sides.values())
    if long > MAX_RATIO * short:
        raise UserError(f"{at}: one side has {long} characters, the other {short}; match their lengths")


def _check_program(program: str, at: str) -> None:
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{at}'s program does not parse ({error}); mend it") from error
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    if not tree.body or (functions and all(_is_idle(node) for f in functions for node in f.body)):
        raise UserError(f"{at}'s program is a stub: none of its functions does anything; write it out")


def _is_idle(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
