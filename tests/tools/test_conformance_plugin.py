"""`pytest --funcopt-conformance`: sound optimizers pass, and each law can be broken."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from funcopt._law_error import LawError
from funcopt.tools import _laws

ROOT = Path(__file__).parents[2]

BROKEN = '''
import jax, jax.numpy as jnp, optax, torch


class Base(torch.optim.Optimizer):
    """Momentum, soundly."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    self.one(group, p)
        return loss

    def one(self, group, p):
        if p.grad is not None:
            state = self.state[p]
            m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
            p.sub_(group["lr"] * m)


class NoClosure(Base):
    def step(self, closure=None):
        if closure is not None:
            closure()
        super().step()


class DecaysWithoutGradient(Base):
    def one(self, group, p):
        p.mul_(0.99)
        super().one(group, p)


class OneRate(Base):
    def one(self, group, p):
        super().one(self.param_groups[0], p)


class ForgetsState(Base):
    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


class Widens(Base):
    def one(self, group, p):
        super().one(group, p)
        p.data = p.data.float()


class EatsGradients(Base):
    def one(self, group, p):
        super().one(group, p)
        p.grad.zero_()


class Closes(Base):
    def state_dict(self):
        return {**super().state_dict(), "hook": lambda: None}


def grows():
    return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, (*s, 1)))


def reads():
    def update(g, s, p=None):
        return jax.tree.map(lambda x: x * (1.0 if float(x.ravel()[0]) > 0 else 2.0), g), s
    return optax.GradientTransformation(lambda p: (), update)


def stateless(f):
    return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (jax.tree.map(f, g), s))


def widens():
    return stateless(lambda x: x.astype(jnp.float32))


def divides():
    return stateless(lambda x: x / jnp.abs(x))
'''


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_optimizers.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)


def verdicts(subject: str, reference: str | None = None) -> dict[str, str]:
    found = {}
    for name, law in _laws.laws_of(subject, reference).items():
        try:
            law()
        except LawError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize(
    "subject",
    [
        "torch.optim:AdamW",
        "torch.optim:SGD(lr=0.1, momentum=0.9)",
        "funcopt.torch_bridge.optim:AdamW",
        "funcopt.torch_bridge.optim:Prodigy",
        "funcopt.torch_bridge.optim:AdamWScheduleFree",
        "optax:adamw(0.1)",
        "funcopt:lion",
        "broken_optimizers:Base",
    ],
)
def test_sound_ones_obey(subject: str, broken: None) -> None:
    assert verdicts(subject) == {}


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("NoClosure", "closures_are_called_with_gradients"),
        ("DecaysWithoutGradient", "missing_gradients_leave_parameters_alone"),
        ("OneRate", "groups_have_values_of_their_own"),
        ("ForgetsState", "runs_resume"),
        ("Widens", "dtypes_stay"),
        ("EatsGradients", "parameters_are_updated_in_place"),
        ("grows", "state_is_a_fixed_point"),
        ("widens", "updates_are_like_the_gradients"),
        ("divides", "zero_gradients_are_finite"),
    ],
)
def test_each_law_is_noticed(name: str, law: str, broken: None) -> None:
    found = _laws.laws_of(f"broken_optimizers:{name}")
    with pytest.raises(LawError):
        found[law]()


@pytest.mark.parametrize(
    ("name", "law"), [("Closes", "checkpoints_are_plain"), ("reads", "nothing_is_read_while_tracing")]
)
def test_what_fails_by_itself_is_noticed(name: str, law: str, broken: None) -> None:
    with pytest.raises(Exception, match=r"(?i)lambda|pickle|concret|Tracer"):
        _laws.laws_of(f"broken_optimizers:{name}")[law]()


def test_a_reference_is_compared() -> None:
    assert verdicts("funcopt.torch_bridge.optim:AdamW", "torch.optim:AdamW") == {}
    found = verdicts("torch.optim:Adam", "torch.optim:AdamW")
    assert "a and b part" in found["reference"]


def pytest_run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "pytest_funcopt", "-p", "no:cacheprovider", *arguments]
    path = {
        "PYTHONPATH": f"{ROOT}:{cwd}",
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=path)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "broken_optimizers.py").write_text(BROKEN)
    (tmp_path / "test_of_the_project.py").write_text(
        textwrap.dedent("""
            import sys
            def test_fails():
                assert False
        """)
    )
    done = pytest_run("--funcopt-conformance", "broken_optimizers:OneRate", "-rf", cwd=tmp_path)
    assert "1 failed, 10 passed" in done.stdout, done.stdout + done.stderr
    assert "two groups must be updated as by two optimizers" in done.stdout
    unknown = pytest_run("--funcopt-conformance", "broken_optimizers:Nothing", cwd=tmp_path)
    assert "must be importable" in unknown.stderr, unknown.stdout + unknown.stderr
    without = pytest_run("-q", "--co", cwd=tmp_path)
    assert "1 test collected" in without.stdout
