"""`funcopt._names`, where `funcopt.config` still looks for it."""

from funcopt._names import nearest as nearest
from funcopt._names import simplify as simplify
