"""What the pictures show: the numbers that were given."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import funcopt
from funcopt import plot, schedules
from funcopt.groups import Rule, group_params

PARAMS = {"backbone": {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, "head": jnp.ones((3, 2))}


def test_schedules_are_below_each_other() -> None:
    cycle = schedules.one_cycle_lr(0.1, total_steps=50)
    figure = plot.schedules({"lr": cycle, "momentum": cycle.momentum, "weight_decay": 0.1}, 50)  # pyright: ignore[reportArgumentType]
    assert [axis.get_ylabel() for axis in figure.axes] == ["lr", "momentum", "weight_decay"]
    for axis, schedule in zip(figure.axes, (cycle, cycle.momentum, lambda step: np.full(50, 0.1)), strict=True):
        assert schedule is not None
        x, y = axis.lines[0].get_data()
        np.testing.assert_array_equal(x, np.arange(50))
        np.testing.assert_array_equal(y, schedule(np.arange(50)))
    assert len(plot.schedules(cycle, 50).axes) == 1


def test_paths_are_those_of_the_optimizers(tmp_path: Path) -> None:
    def bowl(x: Any, y: Any) -> Any:
        return x**2 + 10 * y**2

    optimizers = {"sgd": funcopt.sgd(0.05), "muon": funcopt.muon(0.05)}
    figure: Any = plot.paths(bowl, optimizers, (1.0, 0.5), steps=3)
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, 0.9 ** np.arange(4), rtol=1e-6)  # float32
    np.testing.assert_allclose(y, [0.5, 0.0, 0.0, 0.0], atol=1e-7)
    animation: Any = plot.paths(bowl, optimizers, (1.0, 0.5), steps=3, animated=True)
    animation.save(tmp_path / "paths.gif", writer="pillow")
    assert (tmp_path / "paths.gif").stat().st_size > 1000


def test_a_path_that_diverges_is_left_out_of_the_limits() -> None:
    figure: Any = plot.paths(lambda x, y: x**4 + y**2, {"sgd": funcopt.sgd(1.0)}, (3.0, 1.0), steps=20, ylim=(-2, 2))
    assert np.isfinite(figure.axes[0].get_xlim()).all()
    assert figure.axes[0].get_ylim() == (-2, 2)


def test_groups_have_a_bar_for_each_parameter() -> None:
    rules = [Rule(path="backbone", lr_mult=0.1), Rule(kind="bias", decay_mult=0.0), Rule(path="head", freeze=True)]
    table = group_params(PARAMS, rules, "adamw").explain(lr=1e-2, weight_decay=0.1)
    lr, decay = plot.groups(table).axes
    assert [label.get_text() for label in lr.get_yticklabels()] == ["backbone.b", "backbone.w", "head"]
    np.testing.assert_allclose([bar.get_width() for bar in lr.patches], [1e-3, 1e-3, 0.0])  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose([bar.get_width() for bar in decay.patches], [0.0, 0.1, 0.0])  # pyright: ignore[reportAttributeAccessIssue]
    assert [text.get_text().strip() for text in lr.texts] == ["0.001", "0.001", "frozen"]


def test_many_groups_have_a_colour_each() -> None:
    params = {f"layer{i}": jnp.ones(2) for i in range(14)}
    rules = [Rule(path=name, lr_mult=1.0 / (2 + i)) for i, name in enumerate(params)]
    lr, _ = plot.groups(group_params(params, rules, "adamw").explain(lr=1e-3, weight_decay=0.1)).axes
    assert len({bar.get_facecolor() for bar in lr.patches}) == 14
    assert "0.000333" in {text.get_text().strip() for text in lr.texts}


def test_curves_and_ratios() -> None:
    figure = plot.curves({"jax": [1.0, 0.5], "torch": [1.0, 0.4]}, label="training loss")
    assert [line.get_label() for line in figure.axes[0].lines] == ["jax", "torch"]
    assert figure.axes[0].get_ylabel() == "training loss"
    tx, params = funcopt.with_metrics(funcopt.sgd(0.1)), PARAMS
    state, history = tx.init(params), []
    for _ in range(2):
        params, state = funcopt.step(tx, params, state, params)
        history.append(funcopt.metrics(state))
    lines = plot.update_ratios(history).axes[0].lines
    assert [line.get_label() for line in lines[:2]] == ["backbone", "head"]
    np.testing.assert_allclose(np.asarray(lines[0].get_data()[1]), 0.1, rtol=1e-6)


def test_memory_is_in_bytes_for_each_parameter() -> None:
    memories = {"adamw": funcopt.memory(funcopt.adamw(), PARAMS), "sgd": funcopt.memory(funcopt.sgd(0.1), PARAMS)}
    axis = plot.memory(memories).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["adamw", "sgd"]
    total = sum(bar.get_width() for bar in axis.patches[::2])  # pyright: ignore[reportAttributeAccessIssue]
    assert total == pytest.approx(memories["adamw"].bytes_per_element)
    assert [text.get_text().strip() for text in axis.texts] == [f"{total:.3g}", "0.19"]
    assert axis.get_xlim()[1] > total


def test_sharding_has_a_field_for_each_part() -> None:
    program = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        import funcopt
        from funcopt import plot
        mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
        w = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, P("x", "y")))
        b = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("x")))
        figure = plot.sharding(funcopt.lion().init({"w": w, "b": b}))
        print([len(axis.patches) for axis in figure.axes], [t.get_text() for t in figure.axes[0].texts])
    """
    code = "\n".join(line.removeprefix("        ") for line in program.splitlines())
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=flags, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "[2, 4] ['0,1', '2,3']\n", done.stderr


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=r"plot\.sharding: tree must have an array with an axis"):
        plot.sharding({"step": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"plot\.paths: steps must be >= 1, got 0"):
        plot.paths(lambda x, y: x + y, {}, (0.0, 0.0), steps=0)


def test_without_matplotlib_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['matplotlib'] = None\nimport funcopt\nimport funcopt.plot"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert "funcopt.plot: needs matplotlib, which is not installed; pip install 'funcopt[plot]'" in done.stderr


def test_importing_funcopt_imports_no_matplotlib() -> None:
    program = "import sys, funcopt\nassert 'matplotlib' not in sys.modules\nfuncopt.plot.schedules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
