"""Every optimizer on two test functions and on handwritten digits, in JAX and in PyTorch.

Each gets the best of some learning rates, all tried at once by `jax.vmap`; with that one `funcopt.TorchBridge` goes the
same way, and the two are compared. In float64.

    python examples/algorithms.py
    python examples/algorithms.py --algorithms lion prodigy soap
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
from jax import lax
from sklearn.datasets import load_digits
from tqdm import tqdm

import funcopt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LRS = np.geomspace(1e-4, 3.0, 16)
STEPS = 200
EPOCHS, BATCH, HIDDEN = 3, 128, 32
# Rounding, which some runs amplify without bound: those that jump about the valley. How much is measured beside, by a
# start that is changed in its 14th digit.
NUDGE = 1e-14
TOLERANCE = 1e-9
AMPLIFIED = 100  # times what becomes of the nudge
# The basis of what first gradients leave out is any one: two libraries' decompositions choose another.
FREE_BASIS = {"soap", "galore", "shampoo", "apollo"}


class Problem(NamedTuple):
    """Something to minimise, in both frameworks; the same code where the functions are arithmetic."""

    title: str
    start: dict[str, np.ndarray]
    loss: Callable[..., Any]  # of parameters as a dict, and a batch
    torch_loss: Callable[..., Any]
    batches: list[Any]  # of each step


def rosenbrock(params: Any, batch: Any = None) -> Any:
    x, y = params["xy"][0, 0], params["xy"][1, 0]
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def beale(params: Any, batch: Any = None) -> Any:
    x, y = params["xy"][0, 0], params["xy"][1, 0]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def digits_problem() -> Problem:
    """A network of two matrices, so that algorithms for matrices alone take all of it."""
    digits = load_digits()
    images, labels = digits.data / 16, digits.target  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(0)
    start = {
        "hidden": rng.normal(size=(images.shape[1], HIDDEN)) / images.shape[1] ** 0.5,
        "output": rng.normal(size=(HIDDEN, 10)) / HIDDEN**0.5,
    }
    batches = []
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        batches += [(images[i], labels[i]) for i in order]

    def loss(params: Any, batch: Any) -> Any:
        logits = jax.nn.log_softmax(jnp.tanh(batch[0] @ params["hidden"]) @ params["output"])
        return -jnp.take_along_axis(logits, batch[1][:, None], 1).mean()

    def torch_loss(params: Any, batch: Any) -> Any:
        logits = torch.tanh(torch.from_numpy(batch[0]) @ params["hidden"]) @ params["output"]
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch[1]))

    return Problem("handwritten digits", start, loss, torch_loss, batches)


def surface(title: str, function: Callable[..., Any], x: float, y: float) -> Problem:
    return Problem(title, {"xy": np.array([[x], [y]])}, function, function, [None] * STEPS)


class Way(NamedTuple):
    """What one optimizer did."""

    lr: float
    losses: np.ndarray  # before each step
    weights: dict[str, np.ndarray]
    path: np.ndarray  # (steps, elements of the first parameter)
    nudged: dict[str, np.ndarray]  # the weights, from a start that is NUDGE away


def run_jax(problem: Problem, factory: Callable[..., Any]) -> Way:
    """The best of all learning rates."""
    batches = None if problem.batches[0] is None else jax.tree.map(lambda *x: jnp.stack(x), *problem.batches)

    def train(lr: Any, nudge: Any) -> Any:
        tx = factory(lr=lr)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, batch)
            return funcopt.step(tx, grads, state, params), (loss, jax.tree.leaves(params)[0].ravel()[:2])

        params = jax.tree.map(lambda x: x * (1 + nudge), problem.start)
        (params, _), (losses, path) = lax.scan(step, (params, tx.init(params)), batches, length=len(problem.batches))
        return losses, params, path

    both = jax.vmap(jax.vmap(train, (None, 0)), (0, None))
    losses, weights, path = jax.jit(both)(LRS, np.array([0.0, NUDGE]))
    best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)[:, 0, -10:].mean(1)))
    plain, nudged = (jax.tree.map(lambda x, i=i: np.asarray(x[best, i]), weights) for i in range(2))
    return Way(float(LRS[best]), np.asarray(losses[best, 0]), plain, np.asarray(path[best, 0]), nudged)


def run_torch(problem: Problem, factory: Callable[..., Any], lr: float) -> dict[str, np.ndarray]:
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in problem.start.items()}
    optimizer = funcopt.TorchBridge(params.items(), factory, lr=lr)
    for batch in problem.batches:
        optimizer.zero_grad()
        problem.torch_loss(params, batch).backward()
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest weight."""
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in a)


def draw(problems: list[Problem], ways: dict[str, list[Way]], path: str) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(19, 7), layout="constrained")
    few = len(ways) <= 10
    colours = plt.get_cmap("tab10" if few else "nipy_spectral")(
        np.arange(10) if few else np.linspace(0.05, 0.95, len(ways))
    )
    boxes = [((-2, 2), (-1, 3)), ((-0.5, 4), (-2.5, 2))]
    for axis, problem, (xs, ys) in zip(axes, problems, boxes, strict=False):
        grid = np.stack(np.meshgrid(*(np.linspace(low, high, 200) for low, high in (xs, ys))))
        values = problem.loss({"xy": grid[:, None]})
        shade = np.log(values + 1e-3)
        axis.contourf(*grid, shade, levels=24, cmap="Greys", vmax=shade.max() + np.ptp(shade))
        axis.set(title=problem.title, xlim=xs, ylim=ys)
    for (name, own), colour in zip(ways.items(), colours, strict=False):
        for axis, way in zip(axes, own[:2], strict=False):
            axis.plot(*way.path.T, color=colour, linewidth=1)
        smooth = np.convolve(own[2].losses, np.ones(5) / 5, "valid")
        axes[2].plot(smooth, color=colour, linewidth=1, label=name)
    axes[2].set(title=problems[2].title, xlabel="step", ylabel="training loss", yscale="log")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside right upper", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    known = {name: found.factory for name, found in funcopt.algorithms().items() if name != "lbfgs"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="*", choices=sorted(known), default=sorted(known), metavar="NAME")
    parser.add_argument("--output", default="algorithms.png", help="where the figure goes (default: %(default)s)")
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    problems = [
        surface("Rosenbrock's function", rosenbrock, -1.5, 2.0),
        surface("Beale's function", beale, 3.0, 1.5),
        digits_problem(),
    ]
    ways: dict[str, list[Way]] = {}
    print(f"{'':22}" + "".join(f"{title:>26}" for title in ("Rosenbrock", "Beale", "digits")))
    print(f"{'':22}" + f"{'lr':>10}{'loss':>9}{'torch':>7}" * 3)
    above: list[str] = []
    for name in tqdm(args.algorithms, unit="algorithm", file=sys.stderr):
        factory = functools.partial(known[name])
        ways[name] = [run_jax(problem, known[name]) for problem in problems]
        gaps = [
            apart(run_torch(problem, factory, way.lr), way.weights)
            for problem, way in zip(problems, ways[name], strict=True)
        ]
        for problem, way, gap in zip(problems, ways[name], gaps, strict=True):
            if name not in FREE_BASIS and gap > TOLERANCE + AMPLIFIED * apart(way.nudged, way.weights):
                above.append(f"{name} on {problem.title}: {gap:.0e}")
        cells = (
            f"{way.lr:10.1e}{way.losses[-10:].mean():9.1e}{gap:7.0e}" for way, gap in zip(ways[name], gaps, strict=True)
        )
        tqdm.write(f"{name:22}" + "".join(cells))
    draw(problems, ways, args.output)
    print(f"figure: {args.output}")
    print("JAX and torch went the same ways" if not above else f"JAX and torch are apart: {'; '.join(above)}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
