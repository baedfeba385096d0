"""Several arms over several seeds in one study: which runs, their table, their figure."""
