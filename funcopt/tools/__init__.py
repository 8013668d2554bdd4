"""What helps before, between and after runs: comparisons, and the command `python -m funcopt`."""

from funcopt.tools._compare import Comparison as Comparison
from funcopt.tools._compare import Difference as Difference
from funcopt.tools._compare import compare as compare
from funcopt.tools._show_config import show_config as show_config
