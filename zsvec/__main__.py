"""Runs the command line by `python -m zsvec`."""

from zsvec.cli import main

main()
