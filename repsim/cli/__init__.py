"""The command `repsim`: parses, calls one function, prints."""
