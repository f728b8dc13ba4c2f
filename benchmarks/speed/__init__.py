"""Row groups of `benchmarks/run.py`: each module has `rows(options)`, which yields `measure.Row`s."""
