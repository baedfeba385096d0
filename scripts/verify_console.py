"""Gate: what a run prints says what it means.

Invariants:
- columns are declared once, with meaning and unit; hack and solve come in pairs
- Wilson intervals agree with published values and hold at the ends
- the step table keeps its widths, prints undefined values as -, and never shows a hack figure without its solve figure
- progress is seen in a log and on a terminal, also while the work is stuck
- the console hears results and warnings, the log file hears everything; a full disk costs lines of
  that file, and neither the run nor its last message
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from loguru import logger

from _gate import Gate
from _runs import DECLARED, refused, row
from vgrout.run.columns import legend
from vgrout.run.console import add_log_file, say, setup_console
from vgrout.run.declared import columns
from vgrout.run.intervals import proportion, wilson
from vgrout.run.progress import Progress, track
from vgrout.run.table import SHOWN, StepTable, SummaryRow, summary_table

gate = Gate(__doc__)
logger.remove()


@gate.invariant("columns are declared once, with meaning and unit, and hack and solve come in pairs")
def _():
    names = [column.name for column in DECLARED]
    assert len(set(names)) == len(names)
    for column in DECLARED:
        assert column.meaning and column.unit and column.text(None) == "-"
    hacks = [name for name in names if name.startswith("hack")]
    assert len(hacks) == 6 and all(names[names.index(name) + 1] == name.replace("hack", "solve") for name in hacks)
    assert len(legend(DECLARED).splitlines()) == len(DECLARED)
    refused(ValueError, "declared twice", lambda: columns(["a", "a"]))
    return f"{len(DECLARED)} columns for 2 modes"


@gate.invariant("Wilson intervals agree with published values and hold at the ends")
def _():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    error = 0.0
    for (k, n), expected in published.items():
        found = wilson(k, n, 1.959964)
        assert found is not None
        error = max(error, *(abs(a - b) for a, b in zip(found, expected)))
    assert error < 6e-5, error
    assert wilson(0, 0) is None and proportion(0, 0) == "0/0 -"
    for n in range(1, 300):
        none, every = wilson(0, n), wilson(n, n)
        assert none and every and none[0] == 0.0 and every[1] == 1.0 and none[1] > 0 and every[0] < 1, n
    for k, n in ((3, 2), (-1, 4)):
        refused(ValueError, "0 <= k <= n", lambda k=k, n=n: wilson(k, n))
    assert proportion(12, 64) == "12/64 .19 [.11, .30]" and proportion(64, 64) == "64/64 1.00 [.94, 1.00]"
    return f"max error {error:.0e} against 4 decimals"


@gate.invariant("the step table has fixed widths, prints undefined as -, and never shows hack without solve")
def _():
    lines: list[str] = []
    table = StepTable(DECLARED, every=3, write=lines.append)
    for step in range(7):
        table.row(row(step, reward=None, loss=-1e9 if step else 0.5, lr=1e-300))
    body = lines[1:]
    assert len(lines) == 1 + 7 + 3 and {len(line) for line in body} == {len(body[0])}, [len(line) for line in body]
    assert lines[0] == legend(table.columns) and len(lines[0].splitlines()) == len(SHOWN)
    assert [number for number, line in enumerate(body) if "reward" in line] == [0, 4, 8]
    assert body[1].split()[1] == "-" and not any("\x1b" in line or "\r" in line for line in lines)
    for shown in (("hack_student",), ("hack_student", "loss", "solve_student"), ("hack_run_tests", "solve_gt_only")):
        refused(ValueError, "must be followed by", lambda shown=shown: StepTable(DECLARED, shown))
    text = summary_table([SummaryRow("full", "run_tests", 12, 30, 64), SummaryRow("deploy", "gt_only", 0, 0, 0)])
    assert all(("hack " in line) == ("solve " in line) for line in text.splitlines()[1:])
    assert "hack 12/64 .19 [.11, .30]  " in text and "solve 0/0 -" in text
    return f"{len(body[0])} characters wide, legend of {len(SHOWN)} columns"


@gate.invariant("progress beats in a log even while the work is stuck, and draws a bar on a terminal")
def _():
    beats: list[str] = []
    with Progress("grading", 4, every=0.02, terminal=False, write=beats.append) as bar:
        bar.advance(1, "slow row")
        time.sleep(0.1)
        bar.phase("evaluating", None)
        bar.update(3)
        time.sleep(0.1)
    assert any(beat.startswith("grading 1/4, ") and "slow row" in beat for beat in beats), beats
    assert any(beat.startswith("evaluating 3, ") for beat in beats), beats
    reader, terminal = os.openpty()
    with (
        mock.patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": "100"}),
        os.fdopen(terminal, "w", encoding="utf-8") as screen,
        mock.patch.object(sys, "stderr", screen),
        Progress("x", 2) as bar,
    ):
        bar.advance()
        bar.phase("drawing", 3)
        bar.update(2, "a note")
    raw = b""
    with contextlib.suppress(OSError):  # the end of a terminal; one read may give a part of what was drawn
        while chunk := os.read(reader, 1 << 16):
            raw += chunk
    drawn = raw.decode()
    os.close(reader)
    assert "drawing" in drawn and "2/3" in drawn and "a note" in drawn, drawn
    assert list(track([1, 2], "count")) == [1, 2] and list(track(iter("ab"), "count")) == ["a", "b"]
    return f"{len(beats)} beats, a bar of {len(drawn)} characters"


@gate.invariant("the console hears results and warnings, the log file hears everything")
def _():
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stderr(io.StringIO()) as err,
        redirect_stdout(io.StringIO()) as out,
    ):
        setup_console()
        log = Path(folder) / "log.txt"
        listener = add_log_file(log)
        for write, text in ((logger.debug, "detail"), (logger.info, "news"), (logger.warning, "{odd} <red>")):
            write(text)
        say("12 | table {x} <b>")
        logger.remove(listener)
        heard = log.read_text()
        logger.remove()
    assert err.getvalue() == "news\nwarning: {odd} <red>\n", err.getvalue()
    assert out.getvalue() == "12 | table {x} <b>\n", out.getvalue()
    assert all(text in heard for text in ("detail", "news", "{odd} <red>", "12 | table {x} <b>")), heard
    return "2 lines on standard error, 1 on standard output, 4 in the file"


@gate.invariant("a log file that the disk does not take costs one warning, and neither the run nor its last message")
def _():
    with redirect_stderr(io.StringIO()) as err:
        setup_console()
        listener = add_log_file(Path("/dev/full"))
        logger.error("first")
        logger.error("half a pair \ud800")
        logger.remove(listener)
        logger.remove()
    lines = err.getvalue().splitlines()
    lost = [line for line in lines if "/dev/full" in line]
    assert len(lost) == 1 and "No space left on device" in lost[0], lines
    assert sorted(line for line in lines if line not in lost) == ["error: first", "error: half a pair \ud800"], lines
    return lost[0].partition(": ")[2]


if __name__ == "__main__":
    gate.main()
