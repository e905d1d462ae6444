"""`python -m jaxprob` is the command line."""

import sys

from jaxprob.cli import main

if __name__ == "__main__":
    sys.exit(main())
