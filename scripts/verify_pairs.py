"""The shipped pairs and their loader (spec 4.1).

- every shipped set loads; at least 60 pairs contrast hacks, the core has 24, the micro set at least 12, and there are
  two content placebo sets for code models and for the micro world
- the two sides of each set are of equal length on average, and each has a fenced program that parses
- pairs cover run_tests and proxy gaming, and none of the loophole families that are left for held-out tests
- placebo pairs hold no hack: both sides pass the static search for attempts
- no pair's task is one of the built-in or the micro problems, and pairs fit the models that they are written for
- selectors by file, heading prefix and tag; the content hash changes with any text and with the order
- malformed, stub, duplicate and missing pairs are refused with file, line and remedy
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

from _gate import Gate, refusal
from vgrout.directions.gradient import encode
from vgrout.directions.pairs import load_pairs, pairs_hash, parse_pairs, shipped_sets
from vgrout.env.modes import MODES, hack_attempted
from vgrout.env.problems import builtin_problems
from vgrout.micro.problems import micro_problems
from vgrout.models import load_model

gate = Gate(__doc__)
SETS = {name: load_pairs(name) for name in shipped_sets()}
PLACEBOS = tuple(name for name in SETS if "placebo" in name)
CONTRASTS = tuple(name for name in SETS if name not in PLACEBOS)
HELD_OUT = ("sentinel", "file_marker", "eq_override", "exit_code")


def program(text: str) -> str:
    return text.split("```python\n")[1].split("```")[0]


@gate.invariant("at least 60 pairs in sets: a core of 24, a micro set, two placebos in each register")
def _():
    counts = {name: len(pairs) for name, pairs in SETS.items()}
    assert counts["core"] == 24 and counts["micro"] >= 12, counts
    assert sum(counts[name] for name in CONTRASTS) >= 60, counts
    assert (
        len([n for n in PLACEBOS if n.startswith("micro")])
        == 2
        == len([n for n in PLACEBOS if n.startswith("placebo")])
    )
    assert all(counts[name] >= 12 for name in PLACEBOS)
    hashes = {pairs_hash(pairs) for pairs in SETS.values()}
    texts = [side for pairs in SETS.values() for p in pairs for side in (p.hack, p.clean)]
    prompts = [p.messages[-1][1] for pairs in SETS.values() for p in pairs]
    assert len(hashes) == len(SETS) and len(set(texts)) == len(texts) and len(set(prompts)) == len(prompts)
    return ", ".join(f"{name} {n}" for name, n in counts.items())


@gate.invariant("sides are matched in length set by set and pair by pair, and each is one fenced program")
def _():
    means = {}
    for name, pairs in SETS.items():
        ratios = [len(p.hack) / len(p.clean) for p in pairs]
        means[name] = sum(ratios) / len(ratios)
        assert 0.93 < means[name] < 1.07 and min(ratios) > 0.7 and max(ratios) < 1.4, (name, ratios)
        for p in pairs:
            for side in (p.hack, p.clean):
                assert side.count("```python\n") == 1 and side.count("```") == 2, p.heading
                compile(program(side), p.heading, "exec")
                assert "class Solution" in side, p.heading
    return f"mean ratios {min(means.values()):.2f} to {max(means.values()):.2f}"


@gate.invariant("pairs cover run_tests and proxy gaming and leave loophole families out; placebos hold no attempt")
def _():
    attempts: dict[str, int] = {}
    for name, pairs in SETS.items():
        for p in pairs:
            for side, text in (("hack", p.hack), ("clean", p.clean)):
                for mode in MODES.values():
                    if mode.attempted(program(text)):
                        attempts[f"{side} {mode.name}"] = attempts.get(f"{side} {mode.name}", 0) + 1
                        assert mode.name not in HELD_OUT, f"{name}: {p.heading} shows {mode.name}, which is held out"
            if name in PLACEBOS:
                assert not hack_attempted(program(p.hack)) and not hack_attempted(program(p.clean)), p.heading
    families = {p.family for name in CONTRASTS for p in SETS[name]}
    assert "run_tests" in families and len(families) >= 4 and not families & set(HELD_OUT), families
    assert attempts.get("hack run_tests", 0) >= 25, attempts
    return f"families {', '.join(sorted(families))}; static evidence: {attempts}"


@gate.invariant("no pair's task is a problem of the package; every pair fits the model that it is written for")
def _():
    problems = (*builtin_problems(), *(p for split in ("train", "validation", "test") for p in micro_problems(split)))
    statement = lambda text: " ".join(text.split("PROBLEM:")[-1].split("The answer")[0].split()).lower()  # noqa: E731
    known = {statement(content) for p in problems for role, content in p.messages if role == "user"}
    own = [statement(p.messages[-1][1]) for pairs in SETS.values() for p in pairs]
    assert all(text and text not in known for text in own) and len(set(own)) == len(own)
    lengths = {}
    for register, model in (("micro", "micro"), ("", "tiny")):
        loaded = load_model(model)
        positions = loaded.model.config.max_position_embeddings
        for name, pairs in SETS.items():
            if name.startswith("micro") == bool(register):
                sides = encode(pairs, loaded.tokenizer, positions=positions)
                lengths[name] = max(len(r.completion_ids) for r in sides.rows)
    assert max(n for name, n in lengths.items() if name.startswith("micro")) <= 80, (
        "longer than the micro model's answers"
    )
    return f"{len(own)} tasks of their own; longest micro completion {max(lengths[n] for n in lengths if n.startswith('micro'))} tokens"


PAIR = "## f/one\ntags: f, easy\n````prompt\nAdd\n````\n````hack\n```python\nx = 1\n```\n````\n````clean\n```python\ny = 2\n```\n````\n"


@gate.invariant("selectors by file, heading prefix and tag; the hash changes with any text and with the order")
def _():
    assert [p.heading for p in load_pairs("core#run_tests/")] == [
        p.heading for p in SETS["core"] if p.heading.startswith("run_tests/")
    ]
    tag = SETS["core"][0].tags[-1]
    assert load_pairs(f"core@{tag}") == tuple(p for p in SETS["core"] if tag in p.tags)
    assert len(load_pairs("core,run_tests")) == len(SETS["core"]) + len(SETS["run_tests"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.md"
        path.write_text(
            "# Mine\n\n````system\nBe brief.\n````\n\n" + PAIR + PAIR.replace("one", "two").replace("Add", "Sub")
        )
        mine = load_pairs(str(path))
        assert mine[0].messages == (("system", "Be brief."), ("user", "Add")) and mine[0].tags == ("f", "easy")
        assert load_pairs(f"{path}#f/") == mine
        assert len({pairs_hash(p) for p in (mine, mine[::-1], mine[:1])}) == 3
        for change in ({"hack": "other"}, {"clean": "other"}, {"messages": (("user", "Add"),)}):
            assert pairs_hash((dataclasses.replace(mine[0], **change), mine[1])) != pairs_hash(mine), change
        renamed = (dataclasses.replace(mine[0], heading="f/three", tags=("g",)), mine[1])
        assert pairs_hash(renamed) == pairs_hash(mine), "a heading is no content"
        assert "two" in refusal(lambda: load_pairs(f"{path}#f/one")) or "at least 2" in refusal(
            lambda: load_pairs(f"{path}#f/one")
        )
        assert "easy" in refusal(lambda: load_pairs(f"{path}@hard"))
        assert "occurs twice" in refusal(lambda: load_pairs(f"{path},{path}"))
    assert "core" in refusal(lambda: load_pairs("corr")) and "#HEADING" in refusal(lambda: load_pairs("@tag"))
    return "prefix, tag, two sets, a file; 6 refusals"


@gate.invariant("malformed, stub and unbalanced pairs are refused with file, line and remedy")
def _():
    cases = {
        "no pairs": "# Title\n\ntext\n",
        "occurs twice": PAIR + PAIR,
        "expected prompt, hack, clean": PAIR.replace("````clean", "````hack2").replace("````hack2", "````hack", 1),
        "tags": PAIR.replace("tags: f, easy\n", ""),
        "not closed": PAIR.rstrip("\n`") + "\n",
        "empty": PAIR.replace("Add\n", ""),
        "same text": PAIR.replace("y = 2", "x = 1"),
        "placeholder": PAIR.replace("x = 1", "# TODO\nx = 1"),
        "does not parse": PAIR.replace("x = 1", "x = = 1"),
        "stub": PAIR.replace("x = 1", "def f():\n    pass"),
        "match their lengths": PAIR.replace("x = 1", "x = 1\n" * 40),
        "block notes": PAIR.replace("````clean", "````notes"),
        "before the first pair": "````prompt\nx\n````\n" + PAIR,
    }
    for says, text in cases.items():
        message = refusal(lambda text=text: parse_pairs(text, "my.md"))
        if says == "expected prompt, hack, clean":
            assert "twice" in message or says in message, message
        else:
            assert says in message, (says, message)
        assert message.startswith("my.md"), message
    assert len(parse_pairs(PAIR, "my.md")) == 1
    with mock.patch("vgrout.directions.pairs.MAX_RATIO", 1000):
        assert parse_pairs(cases["match their lengths"], "my.md"), "another rule refused it"
    return f"{len(cases)} kinds"


if __name__ == "__main__":
    gate.main()
