"""The interventions, by the names of the command line. A new one is one file and one line here."""

from __future__ import annotations

from vgrout.interventions.absorb import Absorb
from vgrout.interventions.base import Intervention
from vgrout.interventions.erase import Erase
from vgrout.interventions.label_route import LabelRoute
from vgrout.interventions.none import NoIntervention, NoneFull
from vgrout.types import UserError

INTERVENTIONS: dict[str, type[Intervention]] = {
    "none": NoIntervention,
    "none_full": NoneFull,
    "erase": Erase,
    "absorb": Absorb,
    "label_route": LabelRoute,
}


def intervention_class(name: str) -> type[Intervention]:
    """The class of this name, or a `UserError` that lists the names."""
    if name not in INTERVENTIONS:
        raise UserError(f"--intervention {name}: unknown; expected one of {', '.join(INTERVENTIONS)}")
    return INTERVENTIONS[name]
