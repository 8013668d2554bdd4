"""`python -m funcopt`: see `funcopt.tools._command`."""

import sys

from funcopt.tools._command import main

if __name__ == "__main__":
    sys.exit(main())
