"""What wraps an optimizer, and keeps things in its groups and state: the same weights as around torch.optim."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference, make_model, set_gradients, train

from funcopt.torch_bridge import optim

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def timm_lookahead() -> Any:
    """timm's; its torchvision has no build for this CPU, which the declaration of two operators makes up for."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = pytest.importorskip("timm.optim.lookahead", reason="needs the extra: pip install 'funcopt[clients]'")
    return module.Lookahead


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return torch.nn.functional.mse_loss(model(x), y)


@EACH_TWIN
def test_timm_lookahead(twin: Twin, timm_lookahead: Any) -> None:
    """Keeps its slow weights in the base optimizer's state, goes on from a checkpoint of all of it."""
    results = []
    for build in twin:
        model, resumed = make_model(), make_model(seed=9)
        optimizer = timm_lookahead(build(model.parameters(), lr=0.05), alpha=0.5, k=3)
        train(model, optimizer, range(5))
        resumed.load_state_dict(model.state_dict())
        second = timm_lookahead(build(resumed.parameters(), lr=0.7), alpha=0.5, k=3)
        second.load_state_dict(optimizer.state_dict())
        train(resumed, second, range(5, 11))
        results.append(resumed)
    assert difference(*results) <= ROUNDING


@EACH_TWIN
def test_pytorch_optimizer_lookahead(twin: Twin) -> None:
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason="needs the extra")
    results = []
    for build in twin:
        model = make_model()
        optimizer = pytorch_optimizer.Lookahead(build(model.parameters(), lr=0.05), k=2, pullback_momentum="reset")
        train(model, optimizer, range(7))
        results.append(model)
    assert difference(*results) <= ROUNDING


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_pytorch_optimizer_sam(name: str) -> None:
    """Climbs and comes back, with the old weights in its state; the base optimizer shares its groups."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason="needs the extra")
    results = []
    for module in (optim, torch.optim):
        model = make_model()
        optimizer = pytorch_optimizer.SAM(model.parameters(), getattr(module, name), lr=0.05, rho=0.1)
        for step in range(6):
            loss_of(model, step).backward()
            optimizer.first_step(zero_grad=True)
            loss_of(model, step).backward()
            optimizer.second_step(zero_grad=True)
        results.append(model)
    assert difference(*results) <= ROUNDING


@EACH_TWIN
def test_torch_ema(twin: Twin) -> None:
    """Averages of the weights, which it swaps with them in place, and back."""
    torch_ema = pytest.importorskip("torch_ema", reason="needs the extra")
    results = []
    for build in twin:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        average = torch_ema.ExponentialMovingAverage(model.parameters(), decay=0.9)
        for step in range(6):
            train(model, optimizer, [step])
            average.update()
            with average.average_parameters():
                loss_of(model, step)
        average.copy_to()
        results.append(model)
    assert difference(*results) <= ROUNDING


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_stable_baselines3(name: str, tmp_path: Any) -> None:
    """An agent trains, is saved, loaded, and goes on; float32, in which the numbers part by rounding."""
    baselines = pytest.importorskip("stable_baselines3", reason="needs the extra")
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra")

    class Steady(gymnasium.Env):
        """Rewards one of two actions, as an observation says."""

        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.count = 0
            return self._look(), {}

        def _look(self) -> Any:
            return np.cos(np.arange(3) + self.count).astype(np.float32)

        def step(self, action: Any) -> Any:
            reward = float(action == (self._look()[0] > 0))
            self.count += 1
            return self._look(), reward, self.count >= 10, False, {}

    results = []
    for module in (optim, torch.optim):
        keywords = {"optimizer_class": getattr(module, name), "optimizer_kwargs": {"eps": 1e-5}}
        agent = baselines.A2C("MlpPolicy", Steady(), seed=0, n_steps=5, policy_kwargs=keywords, device="cpu")
        agent.learn(100)
        agent.save(tmp_path / module.__name__)
        agent = baselines.A2C.load(tmp_path / module.__name__, env=Steady())
        agent.learn(50)
        results.append([p.detach().clone() for p in agent.policy.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*results, strict=True))


class Larc(torch.optim.Optimizer):
    """Apex's: scales gradients, takes the decay over while the base optimizer steps, and shares everything with it."""

    def __init__(self, optimizer: torch.optim.Optimizer, trust: float = 0.02) -> None:
        self.optim, self.trust = optimizer, trust

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optim, name)

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            decays = []
            for group in self.optim.param_groups:
                decays.append(group.get("weight_decay", 0.0))
                group["weight_decay"] = 0.0
                for p in group["params"]:
                    ratio = self.trust * p.norm() / (p.grad.norm() + decays[-1] * p.norm() + 1e-8)
                    p.grad.add_(p, alpha=decays[-1]).mul_(ratio)
        self.optim.step(closure)
        for group, decay in zip(self.optim.param_groups, decays, strict=True):
            group["weight_decay"] = decay


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_larc(name: str) -> None:
    results = []
    for build in TWINS[name]:
        model = make_model()
        train(model, Larc(build(model.parameters(), lr=0.05)), range(6))
        results.append(model)
    assert difference(*results) <= ROUNDING


def test_horovod_makes_state_by_a_step_of_zeros() -> None:
    """Before it broadcasts a state it makes one: gradients of zeros, and a step; then it writes over all of it."""
    results = []
    for build in TWINS["AdamW"]:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry["step"].fill_(3.0)
            entry["exp_avg"].add_(0.01)
            entry["exp_avg_sq"].add_(0.02)
        optimizer.load_state_dict(state)
        train(model, optimizer, range(3))
        results.append(model)
    assert difference(*results) <= ROUNDING


class SharedAdam:
    """A3C's: makes its whole state at once and shares it between processes."""

    def __new__(cls, module: Any, params: Any, lr: float) -> Any:
        optimizer = module.Adam(params, lr=lr)
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state[p]
                state["step"] = torch.zeros(1)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                for value in state.values():
                    value.share_memory_()
        return optimizer


def test_a3cs_shared_state() -> None:
    results = []
    for module in (optim, torch.optim):
        model = make_model()
        optimizer = SharedAdam(module, model.parameters(), 0.05)
        kept = [value for entry in optimizer.state.values() for value in entry.values()]
        train(model, optimizer, range(4))
        assert all(value.is_shared() for value in kept)
        assert all(any(value is own for value in kept) for e in optimizer.state.values() for own in e.values())
        results.append((model, kept))
    assert difference(results[0][0], results[1][0]) <= ROUNDING
    assert all(torch.allclose(a, b, rtol=ROUNDING) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("way", ["own step", "_init_group"])
def test_subclasses_with_a_step_of_their_own(way: str) -> None:
    """Over `self.state`, and over what torch's class collects for its kernels."""

    def make(base: Any) -> Callable[..., torch.optim.Optimizer]:
        class Signs(base):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:
                for group in self.param_groups:
                    if way == "_init_group":
                        found: list[list[Any]] = [[] for _ in range(6)]
                        self._init_group(group, *found)
                        for p, grad, average in zip(found[0], found[1], found[2], strict=True):
                            average.lerp_(grad, 0.1)
                            p.sub_(average.sign(), alpha=group["lr"])
                        continue
                    for p in group["params"]:
                        state = self.state[p]
                        average = state.setdefault("average", torch.zeros_like(p))
                        average.lerp_(p.grad, 0.1)
                        p.sub_(average.sign(), alpha=group["lr"])

        return Signs

    results = []
    for module in (optim, torch.optim):
        model = make_model()
        optimizer = make(module.Adam)(model.parameters(), lr=0.05)
        for step in range(4):
            set_gradients(model.parameters(), step)
            optimizer.step()
        results.append(model)
    assert difference(*results) == 0.0
