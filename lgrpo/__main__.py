"""`python -m lgrpo` is the command `lgrpo`."""

from lgrpo.cli import main

main(prog_name="lgrpo")
