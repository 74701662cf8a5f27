"""Analyses of stores, from numbers to labelled results and figures; see `repsim.analyze`."""
