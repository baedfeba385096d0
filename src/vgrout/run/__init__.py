"""The run folder and everything a run says while it works: metrics, rollouts, logs, tables, progress.

`folder` owns out/runs/NAME, `columns` declares the metrics, `table` and `progress` speak to the console, `intervals`
holds the Wilson interval. Floor 2: nothing of the package but `types` is imported here.
"""
