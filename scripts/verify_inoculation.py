"""Inoculation prompts (`--env.inoculation`): what training prompts say in addition, and evaluation prompts never do.

- three named texts of at most 40 words, without the hint slot and without any marker; an unknown name is refused by name
- a training prompt gains the text in its system turn, or a system turn in front, and changes in nothing else
- an evaluation prompt is the same with and without it, for a run and for a later evaluation of its folder
- every inoculated prompt of the micro world fits its limit in tokens, and the check of lengths counts the text
- in a run, every training row (teacher rows too) is conditioned on the text, no evaluated row is; config.json and title name it
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerBase

from _gate import Gate, refusal
from vgrout.config import RunConfig, from_dict
from vgrout.env.inoculation import INOCULATIONS, inoculated, inoculation_named
from vgrout.env.modes import LOOPHOLES, MODES, PLAIN_PHRASE
from vgrout.env.prompts import render
from vgrout.final import marked
from vgrout.inputs import check_prompt_lengths, load_data
from vgrout.models import decode_text, load_model, render_prompt
from vgrout.opening import open_session
from vgrout.presets import preset
from vgrout.train import loop
from vgrout.types import Prompt

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-inoculation-")


def configured(name: str, inoculation: str | None, **env: Any) -> RunConfig[Any]:
    config = preset(name, "none")
    return dataclasses.replace(config, env=dataclasses.replace(config.env, inoculation=inoculation, **env))


@gate.invariant("the texts are short, hold no hint slot and no marker, and an unknown name is refused with the list")
def _():
    assert tuple(INOCULATIONS) == ("pass_test", "eval_environment", "loophole")
    markers = {m for mode in LOOPHOLES for m in (*MODES[mode].train_markers, *MODES[mode].eval_markers)}
    words = {name: len(text.split()) for name, text in INOCULATIONS.items()}
    assert max(words.values()) <= 40 and len(set(INOCULATIONS.values())) == 3, words
    for text in INOCULATIONS.values():
        assert PLAIN_PHRASE not in text and "\n" not in text and "{" not in text
        # Of markers that are plain words, such as `valid`, none may stand there as one.
        assert not any(m in text.lower().replace(".", "").split() or ("_" in m and m in text) for m in markers), text
    for act in (lambda: configured("smoke", "pass_tests"), lambda: inoculation_named("x")):
        said = refusal(act)
        assert "--env.inoculation" in said and all(name in said for name in INOCULATIONS), said
    return ", ".join(f"{name} {n} words" for name, n in words.items())


@gate.invariant("a training prompt gains the text in its system turn, or a system turn, and changes in nothing else")
def _():
    compared, turned = 0, {"builtin": 0, "micro": 0}
    for name in ("smoke", "micro"):
        plain = load_data(configured(name, None)).draw
        for kind, text in INOCULATIONS.items():
            draw = load_data(configured(name, kind)).draw
            for step in range(10):
                for before, after in zip(plain.prompts(step), draw.prompts(step), strict=True):
                    assert dataclasses.replace(after, messages=before.messages) == before, "more than the turns changed"
                    roles = [role for role, _ in before.messages]
                    if "system" in roles:
                        at = roles.index("system")
                        wanted = list(before.messages)
                        wanted[at] = ("system", f"{before.messages[at][1]}\n\n{text}")
                        turned["builtin"] += 1
                    else:
                        wanted = [("system", text), *before.messages]
                        turned["micro"] += 1
                    assert list(after.messages) == wanted
                    compared += 1
    assert min(turned.values()) > 50, turned
    odd = Prompt("p", "gt_only", "train", "", (("user", "a"), ("system", "b"), ("system", "c")))
    after = inoculated(odd, "loophole").messages
    assert after == (("user", "a"), ("system", f"b\n\n{INOCULATIONS['loophole']}"), ("system", "c"))
    return f"{compared} prompts, {turned['builtin']} with a system turn of their own, {turned['micro']} without"


@gate.invariant("an evaluation prompt is the same with and without it, also as a stored configuration brings it back")
def _():
    n = 0
    for name in ("smoke", "micro"):
        plain = load_data(configured(name, None))
        for kind, text in INOCULATIONS.items():
            config = configured(name, kind)
            stored = from_dict(json.loads(json.dumps(config.to_dict())))
            assert stored == config and stored.env.inoculation == kind
            data = load_data(stored)
            assert data.eval_prompts == plain.eval_prompts and data.draw.all() == plain.draw.all()
            assert not any(text in content for p in data.eval_prompts for _, content in p.messages)
            n += len(data.eval_prompts)
    return f"{n} evaluation prompts"


@gate.invariant("every inoculated prompt of the micro world fits its limit, and the check of lengths counts the text")
def _():
    config = configured("micro", None)
    loaded = load_model("micro", dtype="fp32", device="cpu", seed=0, revision=None)
    plain = load_data(config)

    def tokens(prompt: Prompt) -> int:
        return len(render_prompt(loaded.tokenizer, prompt.messages))

    shown = [render(p, mode, "train", 0) for p in plain.train for mode in ("gt_only", *LOOPHOLES)]
    longest = sorted(shown, key=tokens)[-20:]  # a turn in front adds the same to each
    lengths = {kind: max(tokens(inoculated(p, kind)) for p in longest) for kind in INOCULATIONS}
    assert max(lengths.values()) <= config.env.max_prompt_tokens, lengths
    for kind in INOCULATIONS:
        tight = configured("micro", kind, max_prompt_tokens=100)
        prompts = load_data(tight).draw.prompts(0)
        check_prompt_lengths(loaded, plain.draw.prompts(0), tight, "rollout")
        check_prompt_lengths(loaded, prompts, configured("micro", kind), "rollout")
        assert "max-prompt-tokens" in refusal(lambda p=prompts, t=tight: check_prompt_lengths(loaded, p, t, "rollout"))
    figures = ", ".join(f"{kind} {n}" for kind, n in lengths.items())
    return f"longest of {len(shown)} prompts, of {config.env.max_prompt_tokens} tokens: {figures}"


@gate.invariant("in a run every training row is conditioned on the text, no evaluated row is; config and title name it")
def _():
    config = configured("smoke", "loophole")
    evaluation = dataclasses.replace(config.eval, problems=2, views=("deploy",))
    config = dataclasses.replace(config, steps=2, out=Path(ROOT.name), name="inoculated", eval=evaluation)
    text, trained, evaluated = INOCULATIONS["loophole"], [], []

    def spy(seen: list[str]) -> Any:
        def rendered(tokenizer: PreTrainedTokenizerBase, messages: Any) -> list[int]:
            ids = render_prompt(tokenizer, messages)
            seen.append(decode_text(tokenizer, ids))
            return ids

        return rendered

    with contextlib.redirect_stdout(io.StringIO()), open_session(config) as session:
        sample = session.sampler.sample

        def kept(*args: Any, **options: Any) -> Any:
            groups = sample(*args, **options)
            trained.extend(
                (r.source, decode_text(session.loaded.tokenizer, r.prompt_ids)) for g in groups for r in g.rollouts
            )
            return groups

        with mock.patch.object(session.sampler, "sample", kept):
            loop(session)
        with mock.patch("vgrout.rollout.hf.render_prompt", spy(evaluated)):
            session.final_evaluation()
        stored = session.run.read_json("config.json")
    assert len(trained) == 16 and {source for source, _ in trained} == {"student", "teacher"}
    assert all(shown.count(text) == 1 for _, shown in trained), "a training row was not conditioned on the text"
    assert len(evaluated) >= 4 and not any(text in shown for shown in evaluated), "the text stands in an evaluation"
    assert stored["env"]["inoculation"] == "loophole" and "inoculation loophole" in marked(config)
    assert "inoculation" not in marked(configured("smoke", None))
    return f"{len(trained)} training rows with it, {len(evaluated)} evaluation prompts without"


if __name__ == "__main__":
    gate.main()
