"""vGROUT: gradient routing against reward hacking in a GRPO-trained code model.

With VGROUT_TYPECHECK=1 every annotated function of the package is checked at run time (jaxtyping shapes, beartype
types). The gates switch it on; training runs leave it off, because a check of shapes costs about 30 microseconds a call.
"""

import os

if os.environ.get("VGROUT_TYPECHECK") == "1":
    import pkgutil

    from beartype import BeartypeConf
    from beartype.claw import beartype_packages
    from jaxtyping import install_import_hook

    # Sub-packages without tensors get the types alone: comparing shapes would slow their many small calls tenfold.
    _shapeless = ("env", "micro")
    _shaped = [f"vgrout.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name not in _shapeless]
    install_import_hook([*_shaped, "vgrout.micro.base"], "beartype.beartype")
    # Arguments and results, as in the other modules; a variable may hold an unchecked value until the line that checks it.
    beartype_packages([f"vgrout.{name}" for name in _shapeless], conf=BeartypeConf(claw_is_pep526=False))

__version__ = "0.1.0"
