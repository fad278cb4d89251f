"""``python -m hgpose``."""

from hgpose.cli import main

main()
