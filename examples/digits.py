"""One recipe trains one small convolutional network three times, and the weights agree.

The recipe, clip by global norm then AdamW, with warm-up and cosine, no decay on biases and normalisation and a tenth of
the rate on the first layer, runs

    bridge   in a PyTorch loop, as a torch.optim.Optimizer (funcopt.TorchBridge)
    jax      in a jit-compiled JAX loop
    torch    written by hand with torch.optim.AdamW, clip_grad_norm_ and a torch scheduler, to compare with

from the same initial weights over the same batches of scikit-learn's handwritten digits.

    python examples/digits.py
    python examples/digits.py --dtype float64        # the weights agree to about 1e-9 after the whole run
"""

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
from jax import lax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import funcopt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEAK_LR = 3e-3
WEIGHT_DECAY = 0.05
MAX_NORM = 1.0
FIRST_LAYER_MULT = 0.1
# How far weights may be apart after a run: rounding, which Adam amplifies where a gradient is nearly 0. Measured 2e-6
# and 2e-15; another machine's convolutions add up in another order.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


def recipe(lr: Any, weight_decay: Any) -> funcopt.GradientTransformation:
    """The one definition of the optimizer; numbers, schedules or one value per group go in, in both frameworks."""
    return funcopt.chain(funcopt.clip_by_global_norm(MAX_NORM), funcopt.adamw(lr, weight_decay=weight_decay))


class Network(torch.nn.Module):
    """Two convolutions with group normalisation, and a linear head, for 8 x 8 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = torch.nn.GroupNorm(4, 16)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.norm2 = torch.nn.GroupNorm(4, 32)
        self.head = torch.nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(images)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(x.flatten(1))


def network(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """The same network as a function of the torch module's named parameters."""

    def conv(name: str, x: jax.Array, stride: int) -> jax.Array:
        y = lax.conv_general_dilated(x, params[f"{name}.weight"], (stride, stride), ((1, 1), (1, 1)))
        return y + params[f"{name}.bias"][:, None, None]

    def norm(name: str, x: jax.Array) -> jax.Array:
        groups = x.reshape(len(x), 4, -1)
        mean = groups.mean(-1, keepdims=True)
        variance = jnp.square(groups - mean).mean(-1, keepdims=True)
        y = ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return y * params[f"{name}.weight"][:, None, None] + params[f"{name}.bias"][:, None, None]

    x = jax.nn.relu(norm("norm1", conv("conv1", images, 1)))
    x = jax.nn.relu(norm("norm2", conv("conv2", x, 2)))
    return x.reshape(len(x), -1) @ params["head.weight"].T + params["head.bias"]


def decays(name: str) -> bool:
    """Weights of convolutions and of the head decay; biases and normalisation do not."""
    return name.endswith("weight") and not name.startswith("norm")


def is_first_layer(name: str) -> bool:
    """The layer that learns at a tenth of the rate."""
    return name.startswith("conv1.")


class Data(NamedTuple):
    """Training batches per epoch, and the test set."""

    epochs: list[list[tuple[np.ndarray, np.ndarray]]]
    test_images: np.ndarray
    test_labels: np.ndarray


class Run(NamedTuple):
    """What one way of training came to."""

    losses: list[float]  # mean training loss per epoch
    accuracy: float  # on the test set
    weights: dict[str, np.ndarray]  # final, by torch's names
    seconds: float  # per step, median over epochs after the first


def load_data(epochs: int, batch_size: int, dtype: str, seed: int) -> Data:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]
    labels = digits.target  # pyright: ignore[reportAttributeAccessIssue]
    train_x, test_x, train_y, test_y = map(
        np.asarray, train_test_split(images, labels, test_size=0.2, random_state=seed)
    )
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(epochs):
        order = rng.permutation(len(train_x))[: len(train_x) // batch_size * batch_size]
        batches.append([(train_x[i], train_y[i]) for i in order.reshape(-1, batch_size)])
    return Data(batches, test_x, test_y)


def summarise(losses: list[float], predicted: np.ndarray, data: Data, weights: Any, times: list[float]) -> Run:
    steps = len(data.epochs[0])
    accuracy = float((predicted.argmax(1) == data.test_labels).mean())
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    return Run(losses, accuracy, arrays, statistics.median(times[1:] or times) / steps)


def epochs_with_progress(data: Data, label: str) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    yield from tqdm(data.epochs, desc=f"{label:6}", unit="epoch", file=sys.stderr)


def train_torch(label: str, model: Network, data: Data, optimizer: torch.optim.Optimizer, after_backward: Any) -> Run:
    """An ordinary PyTorch loop; what the two torch runs do differently is in `optimizer` and `after_backward`."""
    losses, times = [], []
    for batches in epochs_with_progress(data, label):
        start, total = time.perf_counter(), 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
            loss.backward()
            after_backward()
            total += loss.item()
        times.append(time.perf_counter() - start)
        losses.append(total / len(batches))
    with torch.no_grad():
        predicted = model(torch.from_numpy(data.test_images)).numpy()
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return summarise(losses, predicted, data, weights, times)


def train_bridge(model: Network, data: Data, schedule: funcopt.Schedule) -> Run:
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        first, decay = is_first_layer(name), decays(name)
        fields = {"params": [], "lr_mult": FIRST_LAYER_MULT if first else 1.0, "decay_mult": 1.0 if decay else 0.0}
        groups.setdefault((first, decay), fields)["params"].append((name, parameter))
    optimizer = funcopt.TorchBridge(groups.values(), recipe, lr=schedule, weight_decay=WEIGHT_DECAY)
    return train_torch("bridge", model, data, optimizer, optimizer.step)


def train_by_hand(model: Network, data: Data, schedule: funcopt.Schedule) -> Run:
    """The reference: no funcopt but for the schedule's formula, which torch has under no one name."""
    groups = [
        {
            "params": [parameter],
            "lr": PEAK_LR * (FIRST_LAYER_MULT if is_first_layer(name) else 1.0),
            "weight_decay": WEIGHT_DECAY if decays(name) else 0.0,
        }
        for name, parameter in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups)
    total = sum(map(len, data.epochs))
    warmup = total // 10

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()

    return train_torch("torch", model, data, optimizer, clip_and_step)


def train_jax(model: Network, data: Data, schedule: funcopt.Schedule) -> Run:
    params = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    slow = funcopt.schedules.scale(schedule, FIRST_LAYER_MULT)
    tx = recipe(
        lr={name: slow if is_first_layer(name) else schedule for name in params},
        weight_decay={name: WEIGHT_DECAY if decays(name) else 0.0 for name in params},
    )

    def loss_of(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(network(params, images))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state, loss

    state = tx.init(params)
    losses, times = [], []
    for batches in epochs_with_progress(data, "jax"):
        start, total = time.perf_counter(), 0.0
        for images, labels in batches:
            params, state, loss = step(params, state, images, labels)
            total += float(loss)
        times.append(time.perf_counter() - start)
        losses.append(total / len(batches))
    return summarise(losses, np.asarray(network(params, jnp.asarray(data.test_images))), data, params, times)


def difference(a: Run, b: Run) -> float:
    """Largest difference between two runs' weights."""
    return max(float(np.abs(a.weights[name] - b.weights[name]).max()) for name in a.weights)


def print_table(runs: dict[str, Run]) -> None:
    print(f"{'':22}" + "".join(f"{name:>12}" for name in runs))
    for epoch in range(len(next(iter(runs.values())).losses)):
        print(f"loss, epoch {epoch + 1:<10}" + "".join(f"{run.losses[epoch]:12.6f}" for run in runs.values()))
    print(f"{'test accuracy':22}" + "".join(f"{run.accuracy:12.4f}" for run in runs.values()))
    print(f"{'weights, from torch':22}" + "".join(f"{difference(run, runs['torch']):12.1e}" for run in runs.values()))
    print(f"{'ms per step':22}" + "".join(f"{1e3 * run.seconds:12.2f}" for run in runs.values()))


def draw(runs: dict[str, Run], schedule: funcopt.Schedule, steps: int, path: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, run), style in zip(runs.items(), ("-", "--", ":"), strict=True):
        left.plot(range(1, len(run.losses) + 1), run.losses, style, label=name, linewidth=2)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log", title="three loops, one recipe")
    left.legend()
    right.plot(schedule(np.arange(steps)), label="all layers")
    right.plot(FIRST_LAYER_MULT * schedule(np.arange(steps)), label="first layer")
    right.set(xlabel="step", ylabel="learning rate", title="warm-up, then cosine")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="digits.png", help="where the figure goes (default: %(default)s)")
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.dtype == "float64")
    data = load_data(args.epochs, args.batch_size, args.dtype, args.seed)
    steps = sum(map(len, data.epochs))
    schedule = funcopt.schedules.warmup_cosine(PEAK_LR, warmup_steps=steps // 10, total_steps=steps)

    def model() -> Network:
        torch.manual_seed(args.seed)
        return Network().to(getattr(torch, args.dtype))

    runs = {
        "bridge": train_bridge(model(), data, schedule),
        "jax": train_jax(model(), data, schedule),
        "torch": train_by_hand(model(), data, schedule),
    }
    print_table(runs)
    draw(runs, schedule, steps, args.output)
    print(f"figure: {args.output}")

    worst = max(difference(a, b) for a in runs.values() for b in runs.values())
    agree = worst <= TOLERANCE[args.dtype]
    print(
        f"largest difference between weights: {worst:.1e}, {'within' if agree else 'ABOVE'} {TOLERANCE[args.dtype]:.0e}"
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
