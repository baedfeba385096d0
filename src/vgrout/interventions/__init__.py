"""The interventions, by the names of the command line. A new one is one file and one line here, or `MODULE:CLASS` outside."""

from __future__ import annotations

from vgrout.interventions.absorb import Absorb
from vgrout.interventions.advantage_mod import AdvantageMod
from vgrout.interventions.base import Intervention
from vgrout.interventions.erase import Erase
from vgrout.interventions.label_route import LabelRoute
from vgrout.interventions.moe import Moe
from vgrout.interventions.monitor import Penalty, Screening
from vgrout.interventions.none import NoIntervention, NoneFull
from vgrout.interventions.plugin import plugin_class
from vgrout.interventions.routeA import RouteA
from vgrout.interventions.routeV import RouteV
from vgrout.types import UserError

INTERVENTIONS: dict[str, type[Intervention]] = {
    "none": NoIntervention,
    "none_full": NoneFull,
    "erase": Erase,
    "absorb": Absorb,
    "routeV": RouteV,
    "routeA": RouteA,
    "moe": Moe,
    "label_route": LabelRoute,
    "advantage_mod": AdvantageMod,
    "penalty": Penalty,
    "screening": Screening,
}


def intervention_class(name: str) -> type[Intervention]:
    """The class of this name, or of a `MODULE:CLASS` outside the package; a `UserError` that says what is expected."""
    if ":" in name:
        return plugin_class(name)
    if name not in INTERVENTIONS:
        raise UserError(
            f"--intervention {name}: unknown; expected one of {', '.join(INTERVENTIONS)}, or MODULE:CLASS of your own"
        )
    return INTERVENTIONS[name]


def option_name(name: str) -> str:
    """What stands before the dot in the options of its settings: the name, of `MODULE:CLASS` the class."""
    return name.rpartition(":")[2]
