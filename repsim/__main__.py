"""`python -m repsim`: the command, where its script is not on the path."""

from repsim.cli.main import run

if __name__ == "__main__":
    run()
