"""Pictures of recipes and runs.

Each function returns a `matplotlib.figure.Figure`, on no canvas of pyplot's: save it, or return it in a notebook.

Not imported by `import funcopt`; it needs matplotlib: `pip install 'funcopt[plot]'`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    from matplotlib import colormaps
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("funcopt.plot: needs matplotlib, which is not installed; pip install 'funcopt[plot]'") from error

from funcopt import _checks
from funcopt._memory import Memory
from funcopt._parts import key_name
from funcopt.groups import Table
from funcopt.groups._explain import Row
from funcopt.kinds import Schedule, integer
from funcopt.rule import GradientTransformation, PyTree, step
from funcopt.schedules._formula import as_schedule
from funcopt.schedules._inspect import values_at

_STEPS = integer(_checks.AT_LEAST_ONE)
_INVISIBLE = 0.01  # bytes per parameter that a bar does not show
_FAR = 100.0  # how far from the start a path is shown by default, in units of 1 + |start|


def schedules(schedules: Schedule | Mapping[str, Schedule], steps: int) -> Figure:
    """Draws one schedule, or several below each other.

    Args:
        schedules: one that takes an array of steps, or a mapping from a name (of a hyperparameter, say) to one.
        steps: number of updates to show, >= 1.

    Raises:
        ValueError: if there are none, or `steps` is less than 1.

    Example:
        >>> from funcopt import plot
        >>> from funcopt.schedules import one_cycle_lr
        >>> cycle = one_cycle_lr(0.1, total_steps=100)
        >>> figure = plot.schedules({"lr": cycle, "momentum": cycle.momentum}, steps=100)
    """
    _STEPS.check("plot.schedules", "steps", steps)
    named = schedules if isinstance(schedules, Mapping) else {"value": schedules}
    if not named:
        _checks.fail("plot.schedules", "schedules", "a schedule or a mapping with at least one", schedules)
    count = np.arange(steps)
    lines = {
        name: values_at("plot.schedules", as_schedule("plot.schedules", f"schedules[{name!r}]", own), count)
        for name, own in named.items()
    }
    figure = Figure(figsize=(6.4, 1.2 + 2.0 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, lines.items(), strict=True):
        axis.plot(count, values)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("step")
    figure.align_ylabels()
    return figure


def paths(
    function: Callable[[Any, Any], Any],
    optimizers: Mapping[str, GradientTransformation],
    start: tuple[float, float],
    steps: int = 100,
    *,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    animated: bool = False,
) -> Figure | FuncAnimation:
    """Draws the ways of optimizers over a function of two numbers.

    Args:
        function: of x and y, made of `jax.numpy`'s operations.
        optimizers: by name, each a transformation.
        start: where all of them start.
        steps: number of updates, >= 1.
        xlim: what is shown of x; by default what the ways need.
        ylim: what is shown of y.
        animated: whether to return an animation of the ways, for `.save("paths.gif")` or a notebook.

    Example:
        >>> import funcopt
        >>> from funcopt import plot
        >>> optimizers = {"adam": funcopt.adam(0.1), "sgd": funcopt.sgd(0.1)}
        >>> figure = plot.paths(lambda x, y: x**2 + 10 * y**2, optimizers, start=(-1.0, 0.5), steps=20)
    """
    _STEPS.check("plot.paths", "steps", steps)
    ways = {name: _way(function, tx, start, steps) for name, tx in optimizers.items()}
    shown = np.concatenate([np.array([start]), *ways.values()])
    shown = shown[np.abs(shown - start).max(1) < _FAR * (1 + np.abs(start).max())]  # not what diverges
    limits = [given or _widened(shown[:, i]) for i, given in enumerate((xlim, ylim))]
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    grid = np.meshgrid(*(np.linspace(low, high, 200) for low, high in limits))
    height = np.asarray(function(*map(jnp.asarray, grid)))
    shade = np.log(height - height.min() + 1e-3 * max(np.ptp(height), 1e-12))
    # The darkest grey lies beyond what is drawn, so that lines stay in front.
    axis.contourf(*grid, shade, levels=30, cmap="Greys", vmin=shade.min(), vmax=shade.max() + 0.8 * np.ptp(shade))
    colours = _colours(len(ways))
    lines = [
        axis.plot(*way.T, color=c, label=name, linewidth=1.5)[0]
        for (name, way), c in zip(ways.items(), colours, strict=False)
    ]
    ends = [axis.plot(*way[-1:].T, "o", color=c)[0] for way, c in zip(ways.values(), colours, strict=False)]
    axis.plot(*start, "k+", markersize=10)
    axis.set(xlim=limits[0], ylim=limits[1], xlabel="x", ylabel="y")
    axis.legend(loc="best", fontsize="small")
    if not animated:
        return figure

    def draw(frame: int) -> Iterable[Any]:
        for line, end, way in zip(lines, ends, ways.values(), strict=True):
            line.set_data(*way[: frame + 1].T)
            end.set_data(*way[frame : frame + 1].T)
        return [*lines, *ends]

    every = max(steps // 100, 1)
    return FuncAnimation(figure, draw, frames=range(0, steps + 1, every), interval=50, blit=True)


def groups(table: Table) -> Figure:
    """Draws what each parameter gets: learning rates and weight decays, as `Groups.explain` tabulates them.

    Args:
        table: `groups.explain(lr=..., weight_decay=...)`, with the base values, so that there are numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt import plot
        >>> from funcopt.groups import Rule, group_params
        >>> params = {"backbone": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
        >>> table = group_params(params, [Rule(path="backbone", lr_mult=0.1)], "adamw").explain(
        ...     lr=1e-3, weight_decay=0.1
        ... )
        >>> figure = plot.groups(table)
    """
    names = list(dict.fromkeys(row.group for row in table.rows))
    colours = dict(zip(names, _colours(len(names)), strict=True))
    figure = Figure(figsize=(8.0, 1.5 + 0.22 * len(table.rows)), layout="constrained")
    places = np.arange(len(table.rows))
    for axis, field in zip(figure.subplots(1, 2, sharey=True), ("lr", "weight_decay"), strict=True):
        values = np.array([_number(getattr(row, field)) for row in table.rows])
        axis.barh(places, np.nan_to_num(values), color=[colours[row.group] for row in table.rows])
        for place, row in enumerate(table.rows):
            axis.annotate(
                f" {_short(row, field)}",
                (max(np.nan_to_num(values[place]), 0.0), place),
                va="center",
                fontsize="x-small",
            )
        axis.set(xlabel=field.replace("_", " "), yticks=places, yticklabels=[row.name for row in table.rows])
        axis.margins(x=0.35)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    figure.axes[0].invert_yaxis()
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3), fontsize="x-small")
    return figure


def curves(curves: Mapping[str, Sequence[float]], *, label: str = "loss", log: bool = True) -> Figure:
    """Draws numbers of runs over their steps; where they are equal, one is seen through the other.

    Args:
        curves: numbers by name of the run.
        label: what the numbers are.
        log: whether the axis is logarithmic.

    Example:
        >>> from funcopt import plot
        >>> figure = plot.curves({"jax": [1.0, 0.5, 0.2], "torch": [1.0, 0.5, 0.2]})
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for i, (name, values) in enumerate(curves.items()):
        own = np.asarray(values, np.float64)
        style: dict[str, Any] = {"linewidth": 5, "alpha": 0.3} if i == 0 and len(curves) > 1 else {"linewidth": 1.3}
        axis.plot(own, label=name, linestyle="-" if i < 2 else (0, (4, 2 + i)), **style)
    axis.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    axis.legend()
    return figure


def update_ratios(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the update-to-weight ratio of each group over the steps, from `funcopt.metrics` or `optimizer.metrics()`.

    Args:
        history: what was read after each update.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> from funcopt import plot
        >>> tx, params, history = funcopt.with_metrics(funcopt.sgd(0.1)), {"w": jnp.ones(3)}, []
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     params, state = funcopt.step(tx, params, state, params)
        ...     history.append(funcopt.metrics(state))
        >>> figure = plot.update_ratios(history)
    """
    found = [jax.tree_util.tree_leaves_with_path(own["update_ratio"]) for own in history]
    lines: dict[str, list[float]] = {}
    for own in found:
        for path, value in own:
            lines.setdefault(".".join(map(key_name, path)) or "all", []).append(float(value))
    figure = curves(lines, label="update / weight")
    figure.axes[0].axhline(1e-3, color="grey", linewidth=0.8, linestyle=":")
    return figure


def memory(memories: Mapping[str, Memory]) -> Figure:
    """Draws the bytes that the states of recipes take for each element of the parameters, by state key.

    Args:
        memories: `funcopt.memory(tx, params)` by name.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> from funcopt import plot
        >>> params = {"w": jnp.ones((64, 64))}
        >>> figure = plot.memory(
        ...     {name: funcopt.memory(funcopt.algorithms()[name].factory(), params) for name in ("sgd", "adamw")}
        ... )
    """
    sizes: dict[str, list[float]] = {}
    for i, own in enumerate(memories.values()):
        for row in own.rows:
            size = sizes.setdefault(row.key, [0.0] * len(memories))
            size[i] += row.bytes / max(own.params, 1)
    shown = [key for key, size in sizes.items() if max(size) > _INVISIBLE]
    figure = Figure(figsize=(7.0, 1.4 + 0.35 * len(memories)), layout="constrained")
    axis = figure.subplots()
    places, ends = np.arange(len(memories)), np.zeros(len(memories))
    for key, colour in zip(shown, _colours(len(shown)), strict=True):
        axis.barh(places, sizes[key], left=ends, color=colour, label=key)
        ends = ends + sizes[key]
    for place, end, own in zip(places, ends, memories.values(), strict=True):
        axis.annotate(f" {round(own.bytes_per_element, 3):.3g}", (end, place), va="center", fontsize="small")
    axis.set(xlabel="bytes of state for each parameter", yticks=places, yticklabels=list(memories))
    axis.set_xlim(0, 1.12 * max(ends, default=0.0) or 1.0)
    axis.invert_yaxis()
    figure.legend(loc="outside right upper", fontsize="x-small")
    return figure


def sharding(tree: PyTree) -> Figure:
    """Draws which device of a mesh has which part of each array: of parameters, of a state.

    Args:
        tree: a pytree of `jax.Array`s; each is drawn as a matrix of its first and its last axis.

    Raises:
        ValueError: if there is no array with an axis.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> from funcopt import plot
        >>> figure = plot.sharding(funcopt.adamw().init({"w": jnp.ones((4, 4))}))
    """
    arrays = [
        (".".join(map(key_name, path)), x) for path, x in jax.tree_util.tree_leaves_with_path(tree) if np.ndim(x) > 0
    ]
    if not arrays:
        raise ValueError("plot.sharding: tree must have an array with an axis, got none")
    columns = min(len(arrays), 4)
    rows = -(-len(arrays) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, array) in zip(axes, arrays, strict=False):
        _draw_array(axis, name, array)
    for axis in axes[len(arrays) :]:
        axis.set_visible(False)
    return figure


def _draw_array(axis: Any, name: str, array: jax.Array) -> None:
    height, width = array.shape[0], array.shape[-1] if array.ndim > 1 else 1
    held: dict[tuple[int, int, int, int], list[int]] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        top, bottom, _ = index[0].indices(height)
        left, right, _ = index[-1].indices(width) if array.ndim > 1 else (0, 1, 1)
        held.setdefault((left, top, right - left, bottom - top), []).append(device.id)
    for (left, top, wide, high), devices in held.items():
        colour = colormaps["tab20"](min(devices) % 20)
        axis.add_patch(Rectangle((left, top), wide, high, facecolor=colour, edgecolor="white"))
        text = ",".join(map(str, devices)) if len(devices) < 5 else f"{devices[0]}..{devices[-1]}"
        axis.text(left + wide / 2, top + high / 2, text, ha="center", va="center", fontsize="small")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.set_title(f"{name}\n{'x'.join(map(str, array.shape))}", fontsize="x-small")


def _way(function: Callable[[Any, Any], Any], tx: GradientTransformation, start: Any, steps: int) -> np.ndarray:
    """The places after 0, 1, ..., `steps` updates."""

    def advance(carry: Any, _: None) -> Any:
        params, state = carry
        grads = jax.grad(lambda p: jnp.sum(function(p["x"][0, 0], p["x"][1, 0])))(params)
        params, state = step(tx, grads, state, params)
        return (params, state), params["x"][:, 0]

    params = {"x": jnp.asarray(start, float).reshape(2, 1)}  # a matrix, for those that take no other
    _, way = jax.lax.scan(advance, (params, tx.init(params)), length=steps)
    return np.concatenate([[start], way])


def _widened(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.15 * (high - low) or 1.0
    return low - margin, high + margin


def _colours(count: int) -> np.ndarray:
    """Colours that can be told apart, of lines and bars."""
    if count <= 10:
        return colormaps["tab10"](np.arange(count))
    return colormaps["turbo"](np.linspace(0.05, 0.95, count))


def _short(row: Row, field: str) -> str:
    value = _number(getattr(row, field))
    return row.algorithm if row.algorithm == "frozen" else getattr(row, field) if np.isnan(value) else f"{value:.3g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # frozen, or a schedule
        return float("nan")
