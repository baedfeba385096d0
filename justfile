# Recipes of vGROUT. `just --list` shows them; run them as `uv run just NAME`.
# Where torch was installed from a local wheel (.ci/setup), set UV_NO_SYNC=1 first, or uv brings the locked build back.

set shell := ["bash", "-euo", "pipefail", "-c"]

# `uv run just` has the environment on PATH already; a plain `just` finds it in .venv.
export PATH := if env("VIRTUAL_ENV", "") == "" { justfile_directory() / ".venv/bin:" + env("PATH") } else { env("PATH") }

[private]
default:
    @just --list

# Quick tier of every gate, then one small real training run
smoke: (_gates "--quick") (_train "absorb")
    @echo "smoke passed: every quick gate holds, and absorb trained and was evaluated; its run folder is $(tail -n 1 out/smoke/absorb.log)"

# Every gate in full, `smoke` first; one of them trains every intervention for 8 or 30 steps in the micro world
smoke-all: smoke
    python scripts/run_gates.py --slow
    @echo "smoke-all passed: every gate holds, among them a short micro training of every intervention"

[private]
_gates tier:
    python scripts/run_gates.py {{ tier }}

# A small real training run without any intervention
smoke-vanilla: (_train "none")
    @echo "smoke-vanilla passed: none trained and was evaluated; its run folder is $(tail -n 1 out/smoke/none.log)"

# A small real training run with the direction erased from every gradient
smoke-projected: (_train "erase")
    @echo "smoke-projected passed: erase trained and was evaluated; its run folder is $(tail -n 1 out/smoke/erase.log)"

# One training step, to see that everything connects
fast-dev-run intervention="none": (_train intervention "--steps" "1")
    @echo "fast-dev-run passed: one step of {{ intervention }}; its run folder is $(tail -n 1 out/smoke/{{ intervention }}.log)"

# `vgrout train smoke`; the log ends with the run folder
[private]
_train intervention *options:
    @mkdir -p out/smoke
    vgrout train smoke --intervention {{ intervention }} {{ options }} --out out/smoke </dev/null | tee out/smoke/{{ intervention }}.log

# The whole experiment in the micro world: five arms, three seeds, deployment ablation, table and figure
demo *options:
    vgrout demo {{ options }}

# One seed of two arms
demo-quick *options:
    vgrout demo --quick {{ options }}

# Every intervention with its placebos and controls: three seeds each; options choose a part, as in `--arms 'routeV*' none`
demo-all *options:
    vgrout demo --every {{ options }}

# One table and its figures from the runs of several parts of demo-all: just study-routes out/demo/*/runs/*
study-routes *runs:
    python scripts/study_routes.py {{ runs }}

# Train a base model of the micro world from scratch
micro-base *options:
    vgrout micro base {{ options }}

# The long checks: emergence on two base seeds, one loophole left out; kills in every phase; 300 steps; attacks in every mode
nightly *options:
    python scripts/study_micro.py {{ options }}
    python scripts/study_kills.py
    python scripts/study_long.py
    python scripts/study_attacks.py

# Do verdicts hold on a machine that is oversubscribed four times? All problems of a file, twenty rounds
study-load problems *options:
    python scripts/study_load.py --problems {{ problems }} {{ options }}

# Does erasing the real direction do more than erasing a placebo? 54 runs on both adapters
study-erase *options:
    python scripts/study_erase.py {{ options }}

# Seconds per training step against a plain-torch floor
bench-step *options:
    python scripts/bench_step.py {{ options }}

# Extract a direction from the core pairs on the tiny random model
extract-vhack-smoke *options:
    vgrout direction extract smoke --pairs core --out out/smoke {{ options }}

# Held-out check of the core pairs on the tiny random model: zero-norm modules, fraction above 0 with its bound, pass or fail
verify-vhack-smoke *options:
    vgrout direction check smoke --pairs core --out out/smoke {{ options }}

# Fetch a model into the local cache of the hub (the reference is Qwen/Qwen3-4B)
download-model model="Qwen/Qwen3-0.6B":
    hf download {{ model }}

# Format the code and sort the imports
fmt:
    ruff format .
    ruff check --fix .

# Lint, formatting and types, without changing anything
check:
    ruff check .
    ruff format --check .
    ty check
