"""vGROUT: gradient routing against reward hacking in a GRPO-trained code model.

With VGROUT_TYPECHECK=1 every annotated function of the package is checked at run time (jaxtyping shapes, beartype
types). The gates switch it on; training runs leave it off, because a check costs about 30 microseconds a call.
"""

import os

if os.environ.get("VGROUT_TYPECHECK") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("vgrout", "beartype.beartype")

__version__ = "0.1.0"
