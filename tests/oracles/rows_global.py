"""Algorithms with numbers that are common to all parameters."""

import specs
from harness import Row

# The estimate's first sums are of differences to the start, 3e-6 with the default d0: they are no more than float32's
# rounding, and in float64 3e-11 of the way is lost.
FROM_ROUNDING = {"float32": 0.2, "float64": 1e-10}

ROWS = [
    Row(
        "prodigy",
        specs.prodigy,
        lr=1.0,
        one_lr=True,
        whole=True,
        **FROM_ROUNDING,
        wrong=(
            ('sqrt(s["v"]) + d * eps', 'sqrt(s["v"]) + eps'),
            ('dlr * s["m"] /', 'd * lr * s["m"] /'),
        ),
    ),
    Row(
        "prodigy",
        specs.prodigy,
        {"use_bias_correction": True, "safeguard_warmup": True, "growth_rate": 1.1, "d_coef": 3.0, "d0": 1e-2},
        {"correct": True, "safeguard": True, "growth": 1.1, "d_coef": 3.0, "d0": 1e-2},
        lr=1.0,
        one_lr=True,
        whole=True,
        wrong=(
            ("d_coef * num / den", "num / den"),
            ('D["d_max"], d * growth', 'D["d_max"], d'),
            ('b3 * D["num"] + sum', "sum"),
        ),
        name="options",
    ),
    Row(
        "prodigy",
        specs.prodigy,
        {"decouple": False, "beta3": 0.9, "d0": 1e-3},
        {"decouple": False, "b3": 0.9, "d0": 1e-3},
        lr=1.0,
        one_lr=True,
        whole=True,
        name="coupled",
    ),
    Row(
        "dadapt_adam",
        specs.dadapt_adam,
        lr=1.0,
        one_lr=True,
        whole=True,
        **FROM_ROUNDING,
        wrong=(('D["num"] = num', 'D["num"] = acc'), ('(sqrt(s["v"]) + eps) for', '(sqrt(s["v"])) for')),
    ),
    Row(
        "dadapt_adam",
        specs.dadapt_adam,
        {"decouple": True, "use_bias_correction": True, "growth_rate": 1.5, "d0": 1e-3},
        {"decouple": True, "correct": True, "growth": 1.5, "d0": 1e-3},
        lr=1.0,
        one_lr=True,
        whole=True,
        name="options",
    ),
]
