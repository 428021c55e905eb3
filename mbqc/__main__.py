"""`python -m mbqc`, the same as the command `mbqc`."""

from mbqc.cli import main

main()
