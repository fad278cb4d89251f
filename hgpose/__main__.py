"""``python -m hgpose``."""

from hgpose.cli import main

if __name__ == "__main__":
    main()
