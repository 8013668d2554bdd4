"""Shared set-up: strict dtype promotion is not forced, since mixed precision is part of what is tested."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
