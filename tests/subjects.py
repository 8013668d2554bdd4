"""Which algorithms are tried by every run of the tests."""

# One of each kind: what is said of all algorithms is tried on these in every run, and on the others by
# `pytest -m thorough`.
KINDS = {
    "of elements": "adamw sgd lion",
    "that keep other things than averages": "asgd rprop",
    "for some rows": "sparse_adam",
    "with an average of rows and columns": "adafactor",
    "for matrices alone": "muon",
    "with a norm of each array and one of all": "lamb",
    "with numbers that are common to all": "prodigy",
    "with other weights to evaluate": "schedule_free_adamw",
    "with states of other shapes": "dion",
    "with states that depend on the shape": "muon_with_adamw",
    "wrapped": "cautious(lion) schedule_free(sgd)",
}
TRIED = frozenset(name for names in KINDS.values() for name in names.split())
