"""A run's direction: its pairs chosen and encoded, and the direction loaded from its file or extracted, and checked.

Each function raises `UserError` for a mistake in its part of the configuration, before anything is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from vgrout.config import RunConfig
from vgrout.directions.artefact import default_path, describe, load_direction, save_direction
from vgrout.directions.direction import Direction, Extractor, Part
from vgrout.directions.gradient import encode
from vgrout.directions.live import LiveDirection
from vgrout.directions.pairs import Pair, load_pairs, pairs_hash
from vgrout.directions.placebo import parse_source, relabelled
from vgrout.interventions import intervention_class
from vgrout.labelled import oracle_pairs
from vgrout.models import LoadedModel, tokenizer_fingerprint
from vgrout.policy import Policy
from vgrout.run.console import say
from vgrout.run.disk import disk_errors
from vgrout.types import Problem, UserError


def wants_direction(config: RunConfig[Any]) -> bool:
    """Whether the run uses a direction or is measured along one."""
    cls = intervention_class(config.intervention)
    return cls.needs_direction or measured_along(config)


def measured_along(config: RunConfig[Any]) -> bool:
    """Whether each step's gradient is measured along v_hack: where the intervention projects on it, and where it is asked for."""
    cls = intervention_class(config.intervention)
    return "hack" in cls.renews or (config.extraction.measure and (cls.measures_direction or cls.needs_direction))


def require_use(config: RunConfig[Any]) -> None:
    """Refuses an intervention on an adapter that it cannot use, and a control of the direction where it would control
    nothing."""
    cls, source = intervention_class(config.intervention), parse_source(config.direction)
    if cls.adapters and config.adapter.kind not in cls.adapters:
        raise UserError(
            f"--intervention {config.intervention}: expected --adapter.kind {' or '.join(cls.adapters)}, not "
            f"{config.adapter.kind}"
        )
    if source.kind == "random_label" and not cls.permutes_labels:
        raise UserError(
            f"--direction random_label: {config.intervention} finds no labels that could be permuted, so this would be the "
            "real direction under another name; use it with routeV, routeA, moe or advantage_mod"
        )
    if source.kind != "real" and not wants_direction(config):
        raise UserError(
            f"--direction {config.direction}: {config.intervention} uses no direction and is measured along none; leave it out"
        )


def chosen_pairs(config: RunConfig[Any], problems: Sequence[Problem] = ()) -> tuple[Pair, ...]:
    """The pairs that the run's direction is made from: those of --pairs, or of the file of a content placebo or an oracle.

    What a `shuffled` direction is made from has half of its sides exchanged already here.
    """
    source = parse_source(config.direction)
    if source.kind == "oracle":
        pairs = oracle_pairs(Path(source.file), problems)
    else:
        content = source.kind == "content"
        pairs = load_pairs(source.file, "--direction content:") if content else load_pairs(config.pairs)
    return relabelled(pairs, source)


def make_extractor(config: RunConfig[Any], loaded: LoadedModel, policy: Policy, pairs: Sequence[Pair]) -> Extractor:
    """What extracts the direction of these pairs with the model as it is."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    sides = encode(pairs, loaded.tokenizer, positions=positions)
    return Extractor(policy, sides, parse_source(config.direction), config.extraction, config.rollout.max_new)


def identity_of(config: RunConfig[Any], loaded: LoadedModel, policy: Policy, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What a direction file must share with this run."""
    model = {
        "model": loaded.name,
        "revision": loaded.revision or "none",
        "dtype": loaded.dtype,
        "tokenizer": tokenizer_fingerprint(loaded.tokenizer),
    }
    return describe(
        model=model,
        adapter=policy.adapter.identity() | {"fold": config.adapter.fold},
        sizes=policy.adapter.deployed_sizes(),
        pairs=pairs_hash(pairs),
        source=parse_source(config.direction),
        config=config.extraction,
        temperature=config.rollout.temperature,
        max_new=config.rollout.max_new,
    )


def obtain(
    config: RunConfig[Any], loaded: LoadedModel, policy: Policy, pairs: Sequence[Pair], to: Path | None = None
) -> tuple[Extractor, Direction, Path, dict[str, Any]]:
    """The direction of the run at its start; (extractor, direction, its file, what it must share with the run).

    The default file lies in directions/ of the run's root and is written on a miss; a file that the configuration names must
    match. With `to` the direction is extracted in any case and written there.
    """
    extractor = make_extractor(config, loaded, policy, pairs)
    expected = identity_of(config, loaded, policy, pairs)
    file = to or config.extraction.artefact
    if file is None:
        own = parse_source(config.direction).kind in ("content", "oracle")
        file = default_path(config.out / "directions", expected, "own" if own else config.pairs)
    if to is None and (config.extraction.artefact is not None or file.exists()):
        return extractor, load_direction(file, expected), file, expected
    direction = extractor.extract()
    with disk_errors(file):
        save_direction(file, direction, expected)
    return extractor, direction, file, expected


def open_direction(
    config: RunConfig[Any], loaded: LoadedModel, policy: Policy, pairs: Sequence[Pair]
) -> tuple[LiveDirection, dict[str, Any]]:
    """The run's direction, ready for its first step, and what the run folder keeps of it; says what it is."""
    if config.extraction.token_norm != "fixed" and not config.grpo.length_norm:
        logger.warning(
            f"pairs are extracted with token_norm {config.extraction.token_norm}, the training loss divides by a fixed number: "
            "short completions weigh more in the direction (--extraction.token-norm fixed makes them agree)"
        )
    extractor, first, path, identity = obtain(config, loaded, policy, pairs)
    renews = intervention_class(config.intervention).renews
    measured: frozenset[Part] = frozenset({"hack"}) if measured_along(config) else frozenset()
    live = LiveDirection(extractor, first, renews | measured)
    axes = sum(len(a.V) for a in live.subspace.axes.values())
    if not axes:
        raise UserError(
            f"direction {config.direction} of {len(pairs)} pairs ({config.pairs}): no module has an axis, so the two sides "
            "of the pairs have the same gradients; choose other --pairs"
        )
    say(
        f"direction {config.direction} of {len(pairs)} pairs ({config.pairs}): {axes} axes in {len(live.subspace.axes)} "
        f"modules, {live.subspace.dropped} below the noise floor, {live.subspace.skipped} modules skipped; {path}"
    )
    record = {
        "file": str(path),
        "identity": identity,
        "pairs": [pair.heading for pair in pairs],
        "axes": {name: len(a.V) for name, a in live.subspace.axes.items()},
        "dropped": live.subspace.dropped,
        "skipped": live.subspace.skipped,
        "ties": live.subspace.ties,
    }
    return live, record
