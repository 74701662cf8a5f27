"""What single studies ask of the library: the names and constants of one paper per module."""
