"""Which packages there are; everything else that is installed is said in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["repsim", "repsim.*"]), "repsim.analyses"],
    package_dir={"repsim.analyses": "analyses"},
)
