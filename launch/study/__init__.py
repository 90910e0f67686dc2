"""Studies: several runs that differ in named settings, judged by a margin that is fixed before the first run."""
