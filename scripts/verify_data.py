"""`vgrout data fetch`, `check` and `show`: the benchmark's files arrive whole and right or not at all.

Invariants:
- a download is checked before it has its name: sha256, rows, and no problem in both the training and the held-out file;
  the same command keeps a right file and never replaces a wrong one;
- whatever goes wrong on the way leaves no file and one line: a refused connection, a silent server, one that dies in the
  middle, a short body, an error page, 404, a full disk; what may pass is tried again;
- without network the addresses, the place and the commands are printed, and the files are taken from a folder instead,
  packed or not;
- the test file at hand is the published one, and its problems' canonical solutions pass the grader;
- `check` lists every fault of a file at once with its line, finds ids and statements that two files share whatever wraps
  them, and runs canonical solutions; it exits with 1 where anything is wrong;
- `show` prints the chat turns that the model is given, and rows that load again.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from unittest import mock

from _cli import refused, row, run
from _gate import Gate, refusal, shared_folder
from _server import SMALL, TEST, TRAIN, Server, lines, rows, serving
from vgrout.env.problems import builtin_split, load_problems, parse_row
from vgrout.env.prompts import render, row_turns
from vgrout.problem_files import download as downloading
from vgrout.problem_files.benchmark import BASE_URL, FILES, REVISION
from vgrout.problem_files.check import statement
from vgrout.problem_files.download import Patience
from vgrout.problem_files.fetch import fetch, parse_pins

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-data-")
FOLDER = Path(ROOT.name)
QUICK = Patience(seconds=0.5, attempts=3, pause=0.01)


def told(**options: object) -> str:
    """What a fetch prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fetch(**options)  # ty: ignore[invalid-argument-type]
    return out.getvalue()


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden things included."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


@gate.invariant("a download is checked before it has its name; a right file is kept and a wrong one never replaced")
def _():
    assert REVISION in BASE_URL and {f.name for f in FILES.values()} >= {"leetcode_test_medhard.jsonl"}
    to, both = FOLDER / "new" / "data", ("train", "test")
    with serving() as url:
        text = told(to=to, roles=both, base_url=url + "/", patience=QUICK)
        assert names(to) == ["test.jsonl", "train.jsonl"] and (to / "train.jsonl").read_bytes() == TRAIN
        digest = hashlib.sha256(TRAIN).hexdigest()
        assert (
            f"--sha256 train={digest}" in text
            and "as published" in text
            and Server.asked == ["/train.jsonl", "/test.jsonl"]
        )
        assert (to / "train.jsonl").stat().st_mode & 0o777 == 0o666 & ~_umask()
        assert told(to=to, roles=both, base_url=url, patience=QUICK).count("kept") == 2 and len(Server.asked) == 2
        pinned = parse_pins([f"train={digest.upper()}"])
        assert "as pinned" in told(to=to, roles=["train"], base_url=url, pins=pinned)
        said = refusal(lambda: told(to=to, roles=["train"], base_url=url, pins={"train": "0" * 64}))
        assert "nothing was replaced" in said and (to / "train.jsonl").read_bytes() == TRAIN
        wrong = {
            "rows": (
                TRAIN + TRAIN.splitlines(True)[0].replace(b'"id": "', b'"id": "other-'),
                TEST,
                "4 rows, expected 3",
            ),
            "loads": (TRAIN.replace(b"assert ", b"assure ", 1), TEST, "gt_answer[0]"),
            "page": (b"<!doctype html>", TEST, "not JSON"),
            "hash": (TRAIN, TEST + b"\n", f"expected {SMALL['test'].sha256}"),
            "shared": (lines(*rows(0, 2), rows(1, 1)[0]), TEST, "share 1 ids"),
        }
        for label, (train, test, says) in wrong.items():
            Server.bodies = {"train.jsonl": train, "test.jsonl": test}
            said = refusal(lambda label=label: told(to=FOLDER / label, roles=both, base_url=url, patience=QUICK))
            assert says in said and "was not written" in said, (label, said)
            good = {"hash": "train.jsonl"}.get(label, "test.jsonl" if label != "shared" else "train.jsonl")
            assert names(FOLDER / label) == [good], (label, names(FOLDER / label))
    for pin in ("test", "test=12", "other=" + "0" * 64):
        assert "--sha256" in refusal(lambda pin=pin: parse_pins([pin]))
    return f"2 fetched, kept and pinned; {len(wrong)} wrong contents refused"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@gate.invariant("whatever goes wrong on the way leaves no file and one line; what may pass is tried again")
def _():
    to, found = FOLDER / "broken", {}
    cases = {"silent": "no answer within 0.5 s", "short": "broke after", "dead": "broke", "busy": "503"}
    for how, says in cases.items():
        with serving(how) as url:
            found[how] = refusal(lambda url=url: told(to=to, roles=["test"], base_url=url, patience=QUICK))
            assert says in found[how] and "(3 attempts)" in found[how] and len(Server.asked) == 3, (how, found[how])
        assert names(to) == [] and not to.exists(), names(to)
    for how in ("once short", "once busy"):
        with serving(how) as url:
            told(to=FOLDER / how, roles=["test"], base_url=url, patience=QUICK)
            assert names(FOLDER / how) == ["test.jsonl"] and len(Server.asked) == 2
    with serving() as url:
        Server.bodies = {}
        found["404"] = refusal(lambda: told(to=to, roles=["test"], base_url=url, patience=QUICK))
        assert "404" in found["404"] and len(Server.asked) == 1, "a file that is not there is not asked for again"
    with mock.patch.dict(FILES, SMALL):
        found["refused"] = refusal(lambda: told(to=to, roles=["train", "test"], base_url=url, patience=QUICK))
        assert "refused" in found["refused"] and "test.jsonl was not tried" in found["refused"]
        assert "--base-url" in refusal(lambda: told(to=to, roles=["test"], base_url="nowhere", patience=QUICK))
    with serving() as url, mock.patch.object(downloading.Path, "open", _full):
        found["disk"] = refusal(lambda: told(to=to, roles=["test"], base_url=url, patience=QUICK))
        assert "No space left" in found["disk"] and len(Server.asked) == 1
    with serving() as url, mock.patch.object(downloading, "MAX_BYTES", 10):
        assert "more than" in refusal(lambda: told(to=to, roles=["test"], base_url=url, patience=QUICK))
    assert names(to) == [] and not to.exists()
    return f"{len(found) + 2} failures, nothing left behind"


def _full(path: Path, mode: str = "r", *args: object, **named: object) -> io.IOBase:
    if mode != "wb":
        return io.FileIO(path, mode.replace("b", ""))

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return Full()


@gate.invariant(
    "without network the addresses and commands are printed, and files carried by hand are taken, packed or not"
)
def _():
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        port = closed.getsockname()[1]
    to, carried = FOLDER / "by-hand", FOLDER / "carried"
    nowhere = "http" + f"://localhost:{port}"
    with mock.patch.dict(os.environ, {"no_proxy": "*"}):
        code, out, err = run("data", "fetch", "--to", str(to), "--base-url", nowhere, "--attempts", "1")
    assert code == 2 and err.count("error: ") == 1 and "Traceback" not in err, err
    for file in FILES.values():
        assert f"{nowhere}/{file.name}" in out and f"{to / file.name}" in out
    assert (
        f"vgrout data fetch --from carried --to {to} --files train test holdout" in out and "vgrout data check" in out
    )
    carried.mkdir()
    (carried / "train.jsonl").write_bytes(TRAIN)
    (carried / "test.jsonl.gz").write_bytes(gzip.compress(TEST))
    with mock.patch.dict(FILES, SMALL):
        assert told(to=to, roles=["train", "test"], source=carried).count("fetched") == 2
        assert names(to) == ["test.jsonl", "train.jsonl"] and (to / "test.jsonl").read_bytes() == TEST
        shutil.rmtree(to)
        (carried / "test.jsonl.gz").write_bytes(gzip.compress(TEST)[:-9])
        assert "not a whole gzip" in refusal(lambda: told(to=to, roles=["test"], source=carried))
        assert "no such file" in refusal(lambda: told(to=to, roles=["test"], source=FOLDER / "none"))
        (FOLDER / "file").write_text("")
        assert "is a file" in refusal(lambda: told(to=FOLDER / "file" / "x", roles=["train"], source=carried))
    assert names(to) == []
    return "3 addresses, 1 plain and 1 packed file, 3 refusals"


@gate.invariant("the test file at hand is the published one", slow=True)
def _():
    told(to=FOLDER / "real", roles=["test"], source=shared_folder())
    path = FOLDER / "real" / FILES["test"].name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FILES["test"].sha256
    return f"{len(load_problems(path))} problems, sha256 {FILES['test'].sha256}"


@gate.invariant("check lists every fault with its line, and what two files share; it exits with 1")
def _():
    good, bad, twin = FOLDER / "good.jsonl", FOLDER / "bad.jsonl", FOLDER / "twin.jsonl"
    good.write_bytes(lines(*rows(0, 4)))
    code, out, _ = run("data", "check", str(good), "micro:validation")
    assert code == 0 and "124 problems, nothing wrong" in out, out
    faulty = [row(), row(), row(id="a", gt_answer=["assert f() != 1"]), row(id="b", difficulty=""), row(id="c")]
    faulty[4]["canonical_solution"] = "def ("
    bad.write_bytes(lines(*faulty) + b"{\n")
    code, out, _ = run("data", "check", str(bad))
    assert code == 1 and "5 things are wrong" in out, out
    for says in (
        "line 2: id",
        "line 3: field 'gt_answer[0]'",
        "line 4: field 'difficulty'",
        "problem c",
        "bad.jsonl:6",
    ):
        assert says in out, (says, out)
    torn = b"{\n" + lines(row()) + b'{"id": "\xff"}\n' + b'{"id": 1, "id": 2}\n' + b"\xef\xbb\xbf" + lines(row(id="d"))
    bad.write_bytes(torn)
    code, out, _ = run("data", "check", str(bad))
    for says in (
        ":1: not JSON",
        ":3: not UTF-8",
        ":4: not JSON (the key 'id' occurs twice",
        ":5: begins with a byte order",
    ):
        assert code == 1 and "4 things are wrong" in out and says in out, (says, out)
    refused("data", "show", "x" * 300 + ".jsonl", says=("File name too long",))
    refused("data", "show", "pairs:core", "--mode", "sentinel", says=("no --mode",))
    shared = [*rows(0, 6)[4:], _wrapped(rows(0, 1)[0])]
    twin.write_bytes(lines(*shared))
    assert statement(parse_row(shared[2])) == statement(builtin_split()[0][0])
    code, out, _ = run("data", "check", str(good), str(twin))
    assert (
        code == 1 and "share 1 statement: " in out and "share 1 canonical solution: " in out and "share 1 id" not in out
    ), out
    code, out, _ = run("data", "check", str(twin), "builtin")
    assert code == 1 and "share 2 ids: " in out, out
    refused("data", "check", says=("at least one file",))
    refused("data", "check", str(good), str(good), says=("twice",))
    assert run("data", "check", str(FOLDER / "none.jsonl"))[0] == 1
    return "5 faults of one file; ids, a rewrapped statement and a solution shared"


def _wrapped(of: dict) -> dict:
    """The same problem under another id, as another program would have written its prompt."""
    problem = parse_row(of)
    text = problem.messages[-1][1].removeprefix("PROBLEM:").partition("The answer should")[0]
    return of | {"id": "wrapped", "prompt": row_turns(text.upper() + "\n \n", "other", problem.starter_code)}


@gate.invariant("check --solutions names the canonical solutions that fail the grader, with the reason")
def _():
    path = FOLDER / "solutions.jsonl"
    wrong = rows(0, 1)[0] | {"id": "wrong", "canonical_solution": builtin_split()[0][0].wrong_solutions[0]}
    path.write_bytes(lines(*rows(0, 2), wrong))
    code, out, _ = run("data", "check", str(path), "--solutions", "--workers", "1")
    assert code == 1 and "problem wrong: its canonical solution fails the oracle (mismatch" in out, out
    path.write_bytes(lines(*rows(0, 2)))
    code, out, _ = run("data", "check", str(path), "--solutions", "--workers", "1")
    assert code == 0 and "their canonical solutions pass the grader" in out, out
    refused("data", "check", str(path), "--solutions", "--workers", "0", says=("--workers 0",))
    return "1 of 3 named; 2 of 2 pass"


@gate.invariant("the held-out problems' canonical solutions all pass the grader", slow=True)
def _():
    code, out, _ = run("data", "check", str(shared_folder() / "leetcode_test_medhard.jsonl.gz"), "--solutions")
    assert code == 0, out
    return out.splitlines()[-1]


@gate.invariant("show prints the turns that the model is given, and rows that load again")
def _():
    problem = builtin_split()[1][2]
    for mode in ("sentinel", "gt_only"):
        code, out, err = run(
            "data", "show", "builtin", "--id", problem.id, "--mode", mode, "--markers", "eval", "--seed", "7"
        )
        prompt = render(problem, mode, "eval", 7)
        assert code == 0 and all(content in out for _, content in prompt.messages), (out, err)
        assert prompt.marker in out and "\x1b" not in out
    path = FOLDER / "shown.jsonl"
    for name in ("builtin", "micro"):
        code, out, _ = run("data", "show", name, "--as", "row")
        path.write_text(json.dumps(json.loads(out)) + "\n")
        (again,) = load_problems(path)
        code, out, _ = run("data", "show", name, "--limit", "2")
        assert code == 0 and out.count("(--limit") == 2 and again.id in out
    assert run("data", "show", str(path))[1].startswith(f"{path}: 1 problems")
    code, out, _ = run("data", "show", "pairs:core#run_tests/", "--limit", "1")
    heading = out.splitlines()[1].split()[0]
    code, out, _ = run("data", "show", "pairs:core", "--id", heading)
    assert code == 0 and "--- hack ---" in out and "--- clean ---" in out
    refused("data", "show", "builtin", "--id", "none", says=("--id none", "35 problems"))
    refused("data", "show", "builtin", "--mode", "none", says=("mode 'none'", "run_tests"))
    refused("data", "show", "builtin", "--limit", "0", says=("--limit 0",))
    refused("data", "look", says=("fetch, check, show, convert",))
    return "2 prompts, 2 rows, 1 pair, 4 refusals"


if __name__ == "__main__":
    gate.main()
