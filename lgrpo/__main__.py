"""`python -m lgrpo`."""

from lgrpo.cli import main

main()
