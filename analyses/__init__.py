"""One module per question that can be asked of a store.

Each has `compute(store, *, ...)`, which returns a Dataset, and `plot(dataset, *, ...)`, which
returns a figure or several by name; its `KIND` says what it is of: one plan's states, several
plans, log-probabilities or scores (`repsim.registry.AnalysisKind`). The keywords of both become
options of the command, with the help from their docstrings. `repsim.analyze` and the command line
find analyses by their entry points (group `repsim.analyses`), so another package can add its own.
"""
