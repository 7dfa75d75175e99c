"""`python -m zsvec`."""

from zsvec.cli import main

main()
