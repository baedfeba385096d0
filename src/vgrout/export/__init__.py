"""A run's adapter as files that peft, transformers and others load without this package (spec 3.3).

`--to peft` writes a LoRA folder, `--to merged` a whole model. `tensors` says which numbers are exported, `write` puts
them into files, `check` loads these again with plain libraries and compares, `card` describes the folder, and
`command` runs all of it. Nothing appears under the folder's name before it has passed its own checks.
"""

from vgrout.export.command import export_run
from vgrout.export.tensors import Form

__all__ = ["Form", "export_run"]
