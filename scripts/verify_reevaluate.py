"""`vgrout eval`: a stored checkpoint is evaluated as its run would have, and no result is taken for another's.

Invariants:
- a checkpoint that another intervention trained is refused, so that no upper bound loses its mark;
- eval.json says under which intervention, as upper bound or not, and without which sandbox layers it was made, and the
  table says so too;
- other problems go to a file of their own; the same evaluation replaces its file; another's file is never replaced;
- CPU limits come from the run's limits.json where it has them;
- a damaged file of the run folder is named;
- a checkpoint file is whole or not there, its temporary is no checkpoint, and the last one is the last by number;
- a run whose block did not move is evaluated before it fails; only a student's hack makes the checkpoint first_hack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
from pathlib import Path
from unittest import mock

from _cli import FOLDER, finished_run, problem_file, refused, row, run, with_hint
from _gate import Gate, refusal
from vgrout.adapter.checkpoint import save_checkpoint
from vgrout.env.grader import Grader
from vgrout.final import eval_table, evaluate_views, view_table
from vgrout.inputs import load_data, load_policy
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.session import identity

gate = Gate(__doc__)
CHECKPOINT = "checkpoints/ckpt_update0001.safetensors"


def copy_of(label: str, intervention: str = "none") -> Path:
    return Path(shutil.copytree(finished_run(intervention), FOLDER / f"copy-{label}"))


@gate.invariant("a checkpoint of another intervention is refused; results say intervention, upper bound and layers")
def _():
    foreign = finished_run("label_route") / CHECKPOINT
    refused("eval", str(copy_of("foreign")), "--checkpoint", str(foreign), says=("label_route", "none", "folder"))
    said = {}
    for name in ("none", "label_route"):
        folder = copy_of(f"said-{name}", name)
        code, out, err = run("eval", str(folder))
        assert code == 0, err
        assert ("UPPER BOUND" in out) == (name == "label_route"), out
        for file in ("eval.json", "eval_ckpt_update0001.json"):
            result = json.loads((folder / file).read_text())
            said[name, file] = (result["intervention"], result["upper_bound"], result["missing_layers"])
            assert said[name, file] == (name, name == "label_route", []), said
    assert result["shrinkage"] is False
    result |= {"missing_layers": ["cgroup"], "samples": 2, "shrinkage": True}
    noted = view_table(result, "title"), eval_table(result, preset("smoke", "none"))
    assert all("without cgroup" in text and "one cluster" in text and "SHRINKAGE" in text for text in noted), noted
    return f"1 refused, {len(said)} files and their tables"


@gate.invariant("other problems get a file of their own, the same evaluation replaces its own, no other is replaced")
def _():
    folder, step = copy_of("names"), f"{Path(CHECKPOINT).stem}"
    problems = Path(problem_file(row(id="mine", prompt=with_hint(lambda text: f"Mine: {text}")))).rename(
        FOLDER / "mine.jsonl"
    )
    for _ in range(2):
        assert run("eval", str(folder), "--eval-problems", str(problems))[0] == 0
        assert run("eval", str(folder))[0] == 0
    assert sorted(p.name for p in folder.glob("eval_*")) == [f"eval_{step}.json", f"eval_{step}_mine.json"]
    (FOLDER / "elsewhere").mkdir()
    other = Path(shutil.copy(problems, FOLDER / "elsewhere" / "mine.jsonl"))
    refused("eval", str(folder), "--eval-problems", str(other), says=(f"eval_{step}_mine.json", "another"))
    same_name = Path(shutil.copytree(folder, FOLDER / "copy-other"), CHECKPOINT)
    refused("eval", str(folder), "--checkpoint", str(same_name), says=(f"eval_{step}.json", "another"))
    moved = folder.rename(FOLDER / "copy-moved")
    assert run("eval", str(moved))[0] == 0, "a run that was moved is still itself"
    return "2 files, 2 refusals"


@gate.invariant("CPU limits come from limits.json where it has them; a damaged file of the run is named")
def _():
    folder = copy_of("limits")
    limits = json.loads((folder / "limits.json").read_text())
    measured: list[str] = []
    inner = Grader._measure

    def measure(grader: Grader, *args: object) -> float:
        measured.append(str(args[-1]))
        return inner(grader, *args)  # ty: ignore[invalid-argument-type]

    evaluated = {r["problem_id"] for r in json.loads((folder / "eval.json").read_text())["rows"]}
    with mock.patch.object(Grader, "_measure", measure):
        assert run("eval", str(folder))[0] == 0 and measured == [], measured
        (folder / "limits.json").write_text(json.dumps({p: s for p, s in limits.items() if p not in evaluated}))
        assert run("eval", str(folder))[0] == 0 and set(measured) == evaluated, measured
    (folder / "limits.json").write_text(json.dumps(limits | {"1": "two"}))
    refused("eval", str(folder), says=("limits.json", "'two'"))
    damaged = {
        "columns.json": ("{", "[3]", '[{"name": 1, "x": 2}]', "[" * 100_000),
        "config.json": [json.dumps(c) for c in ([], *spoilt(json.loads((folder / "config.json").read_text())))],
    }
    for file, contents in damaged.items():
        good = (folder / file).read_text()
        for text in contents:
            (folder / file).write_text(text)
            refused("eval", str(folder), says=(file,))
        (folder / file).write_text(good)
    return f"{len(limits)} limits; {sum(map(len, damaged.values())) + 1} damaged files"


def spoilt(config: dict) -> list[dict]:
    return [
        config | {"steps": "ten"},
        config | {"grpo": 3},
        config | {"seed": -1},
        config | {"intervention": 5},
        config | {"model": config["model"] | {"name": 7}},
        config | {"env": config["env"] | {"modes": "run_tests"}},
        config | {"rollout": config["rollout"] | {"temperature": "warm"}},
        config | {"adapter": config["adapter"] | {"fold": "yes"}},
    ]


@gate.invariant("a checkpoint is whole or not there, its temporary is none, and numbers order the list")
def _():
    folder = copy_of("checkpoints")
    stored = RunFolder.open(folder)
    for number in (9990, 10000, 990):
        shutil.copy(folder / CHECKPOINT, stored.checkpoint_path(number))
    (folder / "checkpoints" / "ckpt_update20000.tmp").write_bytes(b"half")
    names = [p.stem.removeprefix("ckpt_update") for p in stored.checkpoints()]
    assert names == ["0000", "0001", "0990", "9990", "10000"], names
    loaded, policy = load_policy(preset("smoke", "none"))
    target = stored.checkpoint_path(30000)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    during = []

    def replace(path: Path, goal: Path) -> None:
        during.extend([path.name, len(stored.checkpoints())])
        raise full

    with mock.patch.object(Path, "replace", replace):
        save = lambda: save_checkpoint(target, policy.adapter, identity(loaded), step=1, config={})  # noqa: E731
        assert "No space" in refusal(save) and str(target) in refusal(save)
    assert during[:2] == [f".{target.name}.tmp", len(names)], during
    assert not target.exists() and not list(target.parent.glob(".*")), "a temporary stays behind"
    return f"{', '.join(names)}; a full disk leaves nothing"


@gate.invariant("a run in which no block moved is evaluated before it fails; only a student's hack is a first_hack")
def _():
    out = FOLDER / "idle"
    code, _, err = run("train", "smoke", "--rollout.mix-ratio", "0", "--steps", "1", "--out", str(out))
    assert code == 2 and "has not moved" in err, err
    assert (
        err.count("warning: step 0 learned nothing from its rewards (2 prompts): 2 where no row has a code block") == 1
    ), err
    (folder,) = (out / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert json.loads((folder / "eval.json").read_text())["rows"]
    row_of = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    norms = {name: value for name, value in row_of.items() if name.startswith("grad_norm")}
    assert len(norms) == 3 and set(norms.values()) == {None} and row_of["loss"] is None, norms
    paid = [json.loads(line)["hack_teacher"] for line in (finished_run() / "metrics.jsonl").read_text().splitlines()]
    assert max(paid) > 0 and not (finished_run() / "checkpoints" / "first_hack.safetensors").exists(), paid
    return f"{len(norms)} norms null; teacher hacks {max(paid):.2f} of the rows, no first_hack"


@gate.invariant("a reloaded checkpoint gives the run's own figures")
def _():
    config = preset("smoke", "none")
    evaluation = dataclasses.replace(config.eval, problems=1, free_prompts=False)
    config = dataclasses.replace(config, eval=evaluation)
    folder = copy_of("again")
    assert run("eval", str(folder), "--checkpoint", str(folder / "checkpoints/ckpt_update0000.safetensors"))[0] == 0
    loaded, policy = load_policy(config)
    data = load_data(config)
    problems = data.shown(data.eval_prompts)
    with contextlib.redirect_stderr(io.StringIO()), Grader(problems, workers=1) as grader:
        fresh = evaluate_views(config, loaded, policy, grader, data)
    again = json.loads((folder / "eval_ckpt_update0000.json").read_text())
    texts = [[r["response"] for r in result["rows"]] for result in (fresh, again)]
    wanted = sum(len(part.views) * len(part.prompts) for part in data.final)
    assert texts[0] == texts[1] and len(texts[0]) == wanted == 3 * 1 + 2 * 4, (wanted, len(texts[0]))
    return f"{len(texts[0])} answers of the init's checkpoint equal a fresh adapter's"


if __name__ == "__main__":
    gate.main()
