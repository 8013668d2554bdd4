"""`python -m conformance`: prints the matrix, and exits with 1 if anything is above its bound."""

import argparse
import sys
from collections.abc import Sequence

from conformance import ALGORITHMS, Lbfgs, check, check_lbfgs
from conformance._report import page, table

ROWS = sorted((*ALGORITHMS, Lbfgs()), key=lambda algorithm: algorithm.name.lower())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m conformance", description="Compares every algorithm of torch.optim with torch."
    )
    names = {algorithm.name: algorithm for algorithm in ROWS}
    parser.add_argument("--algorithm", nargs="+", metavar="NAME", help=f"some rows only: {'; '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="two option sets per algorithm")
    parser.add_argument("--markdown", action="store_true", help="print the page of the documentation")
    given = parser.parse_args(arguments)
    for name in given.algorithm or ():
        if name not in names:
            parser.error(f"--algorithm must be among {', '.join(map(repr, names))}, got {name!r}")
    rows = []
    for name in given.algorithm or names:
        algorithm = names[name].quick() if given.quick else names[name]
        print(f"{name}: {len(algorithm.options)} option sets", file=sys.stderr)
        rows.append(check_lbfgs(algorithm) if isinstance(algorithm, Lbfgs) else check(algorithm))
    words = ["python -m conformance"]
    if given.algorithm:
        words += ["--algorithm", *(f"'{name}'" if " " in name else name for name in given.algorithm)]
    words += [option for option, wanted in (("--quick", given.quick), ("--markdown", given.markdown)) if wanted]
    print(page(rows, " ".join(words)) if given.markdown else table(rows), end="" if given.markdown else "\n")
    failures = [failure for row in rows for failure in row.failures()]
    print(*failures or ["all within bounds"], sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
