"""`python -m tenas_jax`: the same as `tenas`."""

import sys

from tenas_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
