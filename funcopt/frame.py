"""What torch puts around a direction: the sign, weight decay and the learning rate.

g = -g                                    maximize
g = g + weight_decay * p                  unless decoupled
u = direction(g)
u = u + weight_decay * p                  decoupled
p = p - lr * u

Beside it stands the arithmetic that rules share, in torch's order of operations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction as bias_correction
from funcopt._numerics import lerp as lerp
from funcopt._numerics import once as once
from funcopt._numerics import root as root
from funcopt._rows import Handling
from funcopt._tree import is_static
from funcopt.rule import Frame, Rule, asked_for, asking


def is_zero(value: Any) -> bool:
    """Whether a number is a plain 0, which switches off what it is multiplied with.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import is_zero
        >>> is_zero(0.0), is_zero(jnp.zeros(()))
        (True, False)
    """
    return is_static(value) and value == 0


def decayed(update: jax.Array, param: Any, weight_decay: Any) -> jax.Array:
    """As in torch, a plain 0 leaves the update alone, where 0 * inf would make it NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import decayed
        >>> decayed(jnp.array([1.0]), jnp.array([4.0]), 0.25)
        Array([2.], dtype=float32)
    """
    return update if is_zero(weight_decay) else update + weight_decay * param


def moved(momentum: Any, buffer: jax.Array, update: jax.Array, weight: Any = 1.0) -> tuple[jax.Array, jax.Array]:
    """A momentum buffer after an update that enters with a weight, and what comes out: the buffer.

    As in torch, a momentum that is 0 for a while leaves the buffer alone, and the update comes out.
    """
    if is_static(momentum):
        new = momentum * buffer + weight * update
        return new, new
    # Chosen as scalars, where to choose between arrays would have XLA:CPU compute both.
    off = jnp.where(momentum == 0, 1.0, 0.0)
    new = (momentum + off) * buffer + weight * (1 - off) * update
    return new, (1 - off) * new + off * update


def decay_rows(weight_decay: Any) -> Handling:
    """Decay would change all rows. A traced number is let through: the bridge checks that it is 0, as torch does.

    Example:
        >>> from funcopt.frame import decay_rows
        >>> decay_rows(0.0), decay_rows(0.1)
        ('rows', 'refuse')
    """
    return "refuse" if is_static(weight_decay) and weight_decay != 0 else "rows"


def ascend(g: jax.Array, maximize: bool) -> jax.Array:
    """The gradient to descend along: torch negates it before all else where it maximizes."""
    return -1.0 * g if maximize else g


def descend(
    direction: Rule,
    lr: Any,
    *,
    weight_decay: Any = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    late: bool = False,
) -> Rule:
    """The optimizer of a direction, which has a state.

    Args:
        direction: the rule that the module's head calls so.
        lr: learning rate, one array's own.
        weight_decay: what is added to the gradient as a multiple of the parameter, or to the direction if `decoupled`.
        decoupled: whether the decay goes by the direction.
        maximize: whether to ascend.
        late: whether the first update only starts the direction's state, which counts updates: decoupled decay waits.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import descend
        >>> from funcopt.rule import Rule
        >>> signs = Rule(lambda g, state: (jnp.sign(g), state), lambda p: ())
        >>> descend(signs, 0.1).update(jnp.array([3.0]), ())[0]
        Array([-0.1], dtype=float32)
    """
    penalty, decay = (0.0, weight_decay) if decoupled else (weight_decay, 0.0)
    asked = asked_for(direction.update)

    def update(g: jax.Array, state: Any, **own: Any) -> tuple[jax.Array, Any]:
        param = own.get("param")
        g = decayed(ascend(g, maximize), param, penalty)
        u, state = direction.update(g, state, **{name: own[name] for name in asked})
        u = decayed(u, param, jnp.where(state.step == 1, 0.0, decay) if late and not is_zero(decay) else decay)
        return u if is_static(lr) and lr == -1 else -lr * u, state

    update = asking(update, *asked, *([] if is_zero(weight_decay) else ["param"]))
    rows = direction.rows if decay_rows(weight_decay) == "rows" else "refuse"

    def redirect(change: Callable[[Rule], Rule]) -> Rule:
        options = {"weight_decay": weight_decay, "decoupled": decoupled, "maximize": maximize, "late": late}
        return descend(redirected(direction, change), lr, **options)

    return direction._replace(update=update, rows=rows, frame=Frame(lr, redirect))


def followed(direction: Rule, then: Callable[..., jax.Array], *asks: str, maximize: bool = False) -> Rule:
    """A rule that does more with a direction; a wrapper changes what comes before.

    Args:
        direction: a rule with a state.
        then: `(u, state) -> update`, from the direction and the new state.
        *asks: what it asks for by keyword.
        maximize: whether to ascend.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import followed
        >>> from funcopt.rule import Rule
        >>> plain = Rule(lambda g, state: (g, state), lambda p: ())
        >>> followed(plain, lambda u, state: -u / jnp.sum(abs(u))).update(jnp.array([3.0, 1.0]), ())[0]
        Array([-0.75, -0.25], dtype=float32)
    """
    asked = asked_for(direction.update)

    def update(g: jax.Array, state: Any, **own: Any) -> tuple[jax.Array, Any]:
        u, state = direction.update(ascend(g, maximize), state, **{name: own[name] for name in asked})
        return then(u, state, **{name: own[name] for name in asks}), state

    def redirect(change: Callable[[Rule], Rule]) -> Rule:
        return followed(redirected(direction, change), then, *asks, maximize=maximize)

    frame = Frame(None, redirect, is_multiple=False)
    return direction._replace(update=asking(update, *asked, *asks), frame=frame)


def redirected(rule: Rule, change: Callable[[Rule], Rule]) -> Rule:
    """A rule with another direction, where what it is made of is known; otherwise `change` of all of it.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import descend, redirected
        >>> from funcopt.rule import Rule
        >>> plain = descend(Rule(lambda g, state: (g, state), lambda p: ()), 0.1)
        >>> signed = redirected(plain, lambda inner: inner._replace(update=lambda g, state: (jnp.sign(g), state)))
        >>> signed.update(jnp.array([3.0]), ())[0]
        Array([-0.1], dtype=float32)
    """
    if rule.frame is None or rule.frame.redirect is None:
        return change(rule)._replace(frame=rule.frame)
    return rule.frame.redirect(change)
