"""Examples of integrations print what they should, and what is registered in timm and MMEngine trains as by hand."""

import copy
import doctest
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import blocks_of, run
from twins import ROUNDING, difference, make_model, train

import funcopt
from funcopt import TorchBridge

timm = pytest.importorskip("timm", reason="needs the extra: pip install 'funcopt[clients]'")
timm_scheduler = pytest.importorskip("timm.scheduler")
timm_optim = pytest.importorskip("timm.optim")
mmengine_optim = pytest.importorskip("mmengine.optim", reason="needs the extra: pip install 'funcopt[clients]'")
in_timm = pytest.importorskip("funcopt.integrations.timm")
in_mmengine = pytest.importorskip("funcopt.integrations.mmengine")
OPTIMIZERS, PARAM_SCHEDULERS = in_mmengine.OPTIMIZERS, in_mmengine.PARAM_SCHEDULERS

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "integrations"
PAGE = "docs/integrations.md"

ACCURACY = r"loss [\d.]+, test accuracy ([\d.]+)"
# By example: its main line, and the bounds of the number in it.
LINES: dict[str, tuple[str, float, float]] = {
    "accelerate_loop": (rf"accelerate: {ACCURACY}, as without the stop: True", 0.9, 1.0),
    "equinox_loop": (rf"equinox: {ACCURACY}", 0.9, 1.0),
    "flax_linen": (rf"flax linen: {ACCURACY}", 0.9, 1.0),
    "flax_nnx": (rf"flax nnx: {ACCURACY}", 0.9, 1.0),
    "fsdp2": (r"weights apart from one process's: (\S+)", 0.0, 1e-8),
    "haiku_loop": (rf"haiku: {ACCURACY}", 0.9, 1.0),
    "huggingface_trainer": (r"own recipe: mean loss [\d.]+, next digits right ([\d.]+)", 0.9, 1.0),
    "keras_jax": (rf"keras: {ACCURACY}", 0.9, 1.0),
    "lbfgs_fit": (r"largest weight [\d.]+, apart from scikit-learn's (\S+)", 0.0, 1e-3),
    "lightning_cli": (rf"lightning cli, ClippedLion: {ACCURACY}", 0.9, 1.0),
    "lightning_module": (rf"lightning: {ACCURACY}", 0.9, 1.0),
    "mmengine_runner": (r"mmengine, TorchBridge: test accuracy ([\d.]+), rates from 0.0025 and 0.0050", 0.9, 1.0),
    "timm_train": (rf"timm, funcopt-adan, 12 groups: {ACCURACY}", 0.9, 1.0),
}
# As from a shell, but with what conftest does for a torchvision that lacks its compiled half.
START = "import conftest, runpy, sys; sys.path[0] = sys.argv[2]; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("[!_]*.py")} == {*LINES}


@pytest.mark.parametrize("name", LINES)
def test_example(name: str, tmp_path: Path) -> None:
    pattern, low, high = LINES[name]
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", START.replace("sys.argv[2]", repr(str(EXAMPLES))), str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(rf"^{pattern}$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert low <= float(found[1]) <= high


BLOCKS = [pytest.param(block, id=str(i)) for i, block in enumerate(blocks_of(ROOT / PAGE))]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_of_the_page(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(block, PAGE, {"__name__": "page"})


def test_the_page_has_each_example() -> None:
    text = (ROOT / PAGE).read_text()
    assert [name for name in LINES if f"python examples/integrations/{name}.py" not in text] == []


@pytest.mark.parametrize("module", [in_timm, in_mmengine])
def test_docstrings(module: Any) -> None:
    assert doctest.testmod(module) == (0, doctest.testmod(module).attempted)


def test_importing_funcopt_imports_no_integration() -> None:
    code = "import sys, funcopt.torch_bridge; print([name for name in sys.modules if 'integrations' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert [name for name in eval(done.stdout) if name.startswith("funcopt")] == []


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """As they were, whatever a test registers."""
    entries = [
        in_timm.default_registry._optimizers,
        OPTIMIZERS._module_dict,
        PARAM_SCHEDULERS._module_dict,
    ]
    before = [dict(own) for own in entries]
    yield
    for own, kept in zip(entries, before, strict=True):
        own.clear()
        own.update(kept)


def clipped_lion(lr: Any, weight_decay: float) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(0.1), funcopt.lion(lr, weight_decay=weight_decay))


STEPS = range(8)
NAMED: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("adamw", funcopt.adamw, {"betas": (0.8, 0.99), "eps": 1e-6}),
    ("lion", funcopt.lion, {"betas": (0.8, 0.99)}),
    ("sgd", funcopt.sgd, {"momentum": 0.8, "nesterov": True}),
    ("muon_with_adamw", funcopt.muon_with_adamw, {"momentum": 0.8}),
    ("schedule_free_adamw", funcopt.schedule_free_adamw, {}),
    ("prodigy", funcopt.prodigy, {"d0": 1e-3}),
]
EACH_NAME = pytest.mark.parametrize(("name", "factory", "options"), NAMED, ids=[name for name, _, _ in NAMED])


class TestTimm:
    @EACH_NAME
    def test_the_same_as_by_hand(self, name: str, factory: Any, options: dict[str, Any]) -> None:
        in_timm.register()
        ours, theirs = make_model(), make_model()
        opt = f"funcopt-{name.replace('_', '')}"
        train(ours, timm_optim.create_optimizer_v2(ours, opt, lr=0.02, weight_decay=0.1, **options), STEPS)
        train(
            theirs, TorchBridge(timm_optim.param_groups_weight_decay(theirs, 0.1), factory, lr=0.02, **options), STEPS
        )
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
        assert difference(ours, make_model()) > 1e-3

    def test_layer_decay_and_a_schedule_of_timms(self) -> None:
        """Timm's own AdamW has the same weights, with `lr_scale` of the groups and all."""
        in_timm.register()
        models = []
        for name in ("funcopt-adamw", "adamw"):
            torch.manual_seed(0)
            model = timm.create_model("test_vit", in_chans=1, num_classes=10, img_size=32).double()
            optimizer = timm_optim.create_optimizer_v2(
                model, name, lr=1e-2, weight_decay=0.05, layer_decay=0.5, betas=(0.9, 0.98)
            )
            scheduler = timm_scheduler.create_scheduler_v2(optimizer, "cosine", num_epochs=3, warmup_epochs=1)[0]
            for epoch in range(3):
                generator = torch.Generator().manual_seed(epoch)
                x = torch.randn(2, 1, 32, 32, generator=generator, dtype=torch.float64)
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                scheduler.step(epoch + 1)
            models.append(model)
        assert len({group["lr_scale"] for group in optimizer.param_groups}) > 2
        # Where a gradient is nearly 0, Adam makes of rounding as much as of anything.
        assert difference(*models) <= 1e3 * ROUNDING

    def test_timms_own_stay(self) -> None:
        before = {name: timm_optim.get_optimizer_info(name) for name in timm_optim.list_optimizers()}
        names = in_timm.register()
        assert all(timm_optim.get_optimizer_info(name) is info for name, info in before.items())
        assert {*timm_optim.list_optimizers()} - {*before} == {*names}
        assert type(timm_optim.create_optimizer_v2(make_model(), "adamw")) is torch.optim.AdamW

    def test_again(self, caplog: pytest.LogCaptureFixture) -> None:
        names = in_timm.register()
        infos = [timm_optim.get_optimizer_info(name) for name in names]
        assert in_timm.register() == names
        assert all(timm_optim.get_optimizer_info(name) is info for name, info in zip(names, infos, strict=True))
        assert caplog.text == ""

    def test_lookahead_goes_before(self) -> None:
        in_timm.register()
        optimizer = timm_optim.create_optimizer_v2(make_model(), "lookahead_funcopt-lion", lr=1e-3)
        assert type(optimizer).__name__ == "Lookahead"
        assert isinstance(optimizer._base_optimizer, TorchBridge)

    def test_own_recipes(self) -> None:
        names = in_timm.register({"clipped_lion": clipped_lion}, prefix="")
        assert names == ("clippedlion",)
        ours, theirs = make_model(), make_model()
        train(ours, timm_optim.create_optimizer_v2(ours, "clippedlion", lr=0.02, weight_decay=0.1), STEPS)
        groups = timm_optim.param_groups_weight_decay(theirs, 0.1)
        train(theirs, TorchBridge(groups, clipped_lion, lr=0.02, weight_decay=0.0), STEPS)
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))

    def test_what_is_left_out(self) -> None:
        names = in_timm.register()
        left = {*funcopt.algorithms()} - {"lbfgs"}
        left = {name for name in left if f"funcopt-{name.replace('_', '')}" not in names}
        assert left == {"ftrl", "rprop", "scion", "sparse_adam"}

    def test_errors(self) -> None:
        register = in_timm.register
        with pytest.raises(ValueError, match=r"timm\.register: 'lion' is taken; give another prefix, or force=True"):
            register({"lion": clipped_lion}, prefix="")
        assert timm_optim.get_optimizer_info("lion").opt_class is timm_optim.Lion
        register({"lion": clipped_lion}, prefix="", force=True)
        assert isinstance(timm_optim.create_optimizer_v2(make_model(), "lion", lr=0.1), TorchBridge)
        with pytest.raises(ValueError, match=r"prefix must be without '_'.*got 'funcopt_'"):
            register(prefix="funcopt_")
        with pytest.raises(ValueError, match="mine must be a recipe with arguments lr and weight_decay"):
            register({"mine": funcopt.rprop})
        with pytest.raises(TypeError, match=r"such as funcopt\.adamw instead of"):
            register({"mine": funcopt.adamw(1e-3)})  # pyright: ignore


def rates(scheduler: dict[str, Any], steps: int = 12) -> list[list[float]]:
    """The learning rates of two groups at each step."""
    model = make_model()
    groups = [{"params": [p], "lr": lr} for p, lr in zip(list(model.parameters())[:2], (0.1, 0.02), strict=True)]
    optimizer = mmengine_optim.OptimWrapper(torch.optim.SGD(groups, lr=0.1))
    built = PARAM_SCHEDULERS.build({**scheduler, "optimizer": optimizer})
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        built.step()
    return found


class TestMMEngine:
    @EACH_NAME
    def test_the_same_as_by_hand(self, name: str, factory: Any, options: dict[str, Any]) -> None:
        in_mmengine.register()
        ours, theirs = make_model(), make_model()
        optimizer = {"type": f"funcopt-{name}", "lr": 0.02, "weight_decay": 0.1, **options}
        wrapper = mmengine_optim.build_optim_wrapper(ours, {"optimizer": optimizer})
        train(ours, wrapper.optimizer, STEPS)
        train(theirs, TorchBridge(theirs.parameters(), factory, lr=0.02, weight_decay=0.1, **options), STEPS)
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
        assert difference(ours, make_model()) > 1e-3

    def test_paramwise_and_clipping(self) -> None:
        """As MMEngine's own AdamW, which is torch's, in its own wrapper."""
        in_mmengine.register()
        models = []
        for name in ("funcopt-adamw", "AdamW"):
            model = make_model()
            cfg = {
                "optimizer": {"type": name, "lr": 0.02, "weight_decay": 0.1},
                "paramwise_cfg": {"bias_decay_mult": 0.0, "custom_keys": {"2": {"lr_mult": 0.5}}},
                "clip_grad": {"max_norm": 0.1},
                "accumulative_counts": 2,
            }
            wrapper = mmengine_optim.build_optim_wrapper(model, copy.deepcopy(cfg))
            for step in STEPS:
                x = torch.full((4, 6), 1.0 + step, dtype=torch.float64)
                wrapper.update_params(model(x).square().mean())
            models.append(model)
        assert difference(*models) <= ROUNDING

    @pytest.mark.parametrize(
        ("theirs", "schedule"),
        [
            ({"type": "StepLR", "step_size": 3, "gamma": 0.5}, {"type": "step_lr", "step_size": 3, "gamma": 0.5}),
            ({"type": "CosineAnnealingLR", "T_max": 9}, {"type": "cosine_annealing_lr", "T_max": 9}),
            ({"type": "ExponentialLR", "gamma": 0.9}, {"type": "ExponentialLR", "gamma": 0.9}),
            (
                {"type": "PolyLR", "power": 2.0, "begin": 2, "end": 8},
                {"type": "polynomial_lr", "total_iters": 5, "power": 2.0},
            ),
        ],
    )
    def test_schedules_are_mmengines(self, theirs: dict[str, Any], schedule: dict[str, Any]) -> None:
        in_mmengine.register()
        own = {key: theirs[key] for key in ("begin", "end") if key in theirs}
        ours = rates({"type": "funcopt-schedule", "schedule": schedule, **own})
        expected = rates(theirs)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        assert len({tuple(row) for row in ours}) > 2

    def test_a_schedule_moves_any_hyperparameter(self) -> None:
        in_mmengine.register()
        optimizer = TorchBridge(make_model().parameters(), funcopt.adamw, lr=0.1, weight_decay=0.2)
        cfg = {"type": "funcopt-schedule", "schedule": {"type": "step_lr", "step_size": 1, "gamma": 0.5}}
        scheduler = PARAM_SCHEDULERS.build({**cfg, "param_name": "weight_decay", "optimizer": optimizer})
        optimizer.step()
        scheduler.step()
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.1, 0.1)

    def test_a_schedule_goes_on_from_its_state(self) -> None:
        in_mmengine.register()
        cfg = {"type": "funcopt-schedule", "schedule": {"type": "cosine_annealing_lr", "T_max": 9}}

        def make(lr: float) -> Any:
            optimizer = torch.optim.SGD(make_model().parameters(), lr=lr)
            return PARAM_SCHEDULERS.build({**cfg, "optimizer": optimizer})

        first, second = make(0.1), make(0.7)
        for _ in range(4):
            first.optimizer.step()
            first.step()
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        for scheduler in (first, second):
            scheduler.optimizer.step()
            scheduler.step()
        assert first.get_last_value() == second.get_last_value() == [0.05 * (1 + math.cos(math.pi * 5 / 9))]

    def test_mmengines_own_stay_and_again(self) -> None:
        before = [dict(OPTIMIZERS.module_dict), dict(PARAM_SCHEDULERS.module_dict)]
        names = in_mmengine.register()
        assert in_mmengine.register() == names
        after = [OPTIMIZERS.module_dict, PARAM_SCHEDULERS.module_dict]
        assert [{**own, **kept} for own, kept in zip(after, before, strict=True)] == after
        assert (
            {*after[0]} - {*before[0]}
            == {*names}
            == {f"funcopt-{name}" for name in funcopt.algorithms()} - {"funcopt-lbfgs"}
        )
        assert {*after[1]} - {*before[1]} == {"funcopt-schedule"}

    def test_own_recipes_and_errors(self) -> None:
        register = in_mmengine.register
        assert register({"ClippedLion": clipped_lion}, prefix="") == ("ClippedLion",)
        optimizer = {"type": "ClippedLion", "lr": 0.02, "weight_decay": 0.1}
        assert isinstance(
            mmengine_optim.build_optim_wrapper(make_model(), {"optimizer": optimizer}).optimizer, TorchBridge
        )
        with pytest.raises(ValueError, match=r"mmengine\.register: 'SGD' is taken; give another prefix, or force=True"):
            register({"new": clipped_lion, "SGD": clipped_lion}, prefix="")
        assert OPTIMIZERS.get("SGD") is torch.optim.SGD
        assert "new" not in OPTIMIZERS.module_dict
        register({"SGD": clipped_lion}, prefix="", force=True)
        assert OPTIMIZERS.get("SGD") is not torch.optim.SGD
