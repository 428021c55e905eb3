"""The command line: `mbqc compile`, `run`, `eval`, `bench`, `inspect` and `passes`.

A command is a function from its arguments to an `Answer`; `main` prints that, as text or as JSON, and turns errors into
one message and an exit code: 0 done, 1 failed, 2 wrong usage. Nothing here imports torch before a command runs.
"""

from mbqc.cli.main import main

__all__ = ["main"]
