"""How a rule for one array becomes a program for trees: prefixes, schedules, counts, totals, rows, half precision."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import EmptyState

from funcopt import _checks, _tree
from funcopt._program import Leaves, Program, PyTree, program
from funcopt._rows import Handling, RowSparse, coalesce, is_rows, put_rows, take_rows, to_dense
from funcopt.kinds import Hyperparameter, Kind

REDUCE: ContextVar[Callable[[PyTree, Callable[[Any, Any], Any]], PyTree] | None] = ContextVar("REDUCE", default=None)
"""What else joins totals, `(total, join) -> total`: set while a part of the arrays is traced by itself."""

OBSERVE: ContextVar[Callable[..., None] | None] = ContextVar("OBSERVE", default=None)
"""Who is told what each transformation has done, `(make, values, leaves, updates)`: set while updates are measured."""


class Rule(NamedTuple):
    """An algorithm for one array.

    Arrays come in the form that is computed on: float32 at least, and complex numbers as a last axis of real and
    imaginary parts, which torch's algorithms treat as independent.

    Args:
        update: `(g, state) -> (update, state)`, or `g -> update` where there is no state. Asks by keyword for `param`,
            for `dtype`, which the parameter is stored in, for `update_dtype`, which updates have outside of the chain,
            and for `total`.
        init: `param -> state`, a NamedTuple whose fields are called as in the reference's checkpoints, in the dtypes
            that are stored; None in a field that is not kept. A field `step` counts the array's updates, which is done
            by the caller: any value in `init`; a float scalar in `update`, 1 at the first one.
        total: what is summed over all arrays before any of them is updated, a tree of scalars; takes what `update`
            takes.
        join: what joins the totals of two arrays.
        rows: what to do with a gradient of some rows: run on these rows of everything, make it dense, or refuse it.
        frame: what `funcopt.frame.descend` made the rule of, for wrappers; None: nobody knows.
        final: whether the state goes by the parameter that the update leads to, so that nothing may change it.
    """

    update: Callable[..., Any]
    init: Callable[[jax.Array], Any] | None = None
    total: Callable[..., Any] | None = None
    join: Callable[[Any, Any], Any] = jnp.add
    rows: Handling = "refuse"
    frame: "Frame | None" = None
    final: bool = False


class Frame(NamedTuple):
    """What is around a direction: the learning rate that the update is a multiple of, and the rest."""

    lr: Any
    # The same around what a function makes of the direction; None: what is decayed cannot be told from the rest.
    redirect: Callable[[Callable[[Rule], Rule]], Rule] | None = None
    maximize: bool = False  # of a rule that nobody can redirect
    is_multiple: bool = True  # whether the update is one of `lr`


class Definition(NamedTuple):
    """What a transformation was lifted from."""

    owner: str
    make: Callable[..., Rule]
    hyperparams: Mapping[str, Hyperparameter]
    kinds: Mapping[str, Kind]
    elementwise: bool
    refuse_param: Callable[[Any], str]


class Refused(Exception):  # noqa: N818  # it is a refusal, which becomes the caller's ValueError
    """What a rule raises for arguments that do not go together: `Refused(argument, allowed, value)`.

    It becomes a ValueError that names the transformation.
    """


class ScheduledState(NamedTuple):
    """State of a transformation with hyperparameters that are schedules."""

    schedule_step: Any  # int32 (): applied updates so far; one for all leaves, as a torch scheduler's
    hyperparams: dict[str, PyTree]  # by name: the scheduled values that the last update used, scalars
    inner_state: PyTree  # state of the transformation that uses them


def follow_schedules(
    owner: str,
    hyperparams: Mapping[str, Hyperparameter],
    kinds: Mapping[str, Kind],
    init: Callable[..., PyTree],
    run: Callable[..., tuple[list[Any], PyTree]],
    *,
    elementwise: bool,
) -> Program:
    """The program of `init(params, values)` and `run(leaves, state, extra, values)`, whose values may be schedules.

    Where none is, the state is that of `init`. Otherwise it is a `ScheduledState`, whose `schedule_step` counts the
    updates in which any leaf had a gradient, and whose schedules read the count before each: all leaves are at the same
    place of a schedule, as under a torch scheduler.
    """
    names = [n for n, value in hyperparams.items() if kinds[n].scheduled and _tree.has_schedule(value)]
    if not names:
        return program(
            lambda params: init(params, hyperparams),
            lambda leaves, state, extra: run(leaves, state, extra, hyperparams),
            elementwise=elementwise,
        )

    def values_at(step: Any) -> dict[str, Any]:
        return {n: _tree.at_step(hyperparams[n], step, tuples=kinds[n].is_tuple) for n in names}

    def init_scheduled(params: PyTree) -> ScheduledState:
        step = _tree.zero_step(_tree.flatten(params)[0])
        values = values_at(step)
        return ScheduledState(step, _tree.as_state(values), init(params, {**hyperparams, **values}))

    def run_scheduled(leaves: Leaves, state: Any, extra: dict[str, Any]) -> tuple[list[Any], ScheduledState]:
        if not isinstance(state, ScheduledState):
            raise ValueError(wrong_state(owner, ScheduledState, state))
        values = values_at(state.schedule_step)
        updates, inner = run(leaves, state.inner_state, extra, {**hyperparams, **values})
        some = any(u is not None for u in leaves.updates)
        step = optax.safe_increment(state.schedule_step) if some else state.schedule_step
        return updates, ScheduledState(step, _tree.as_state(values), inner)

    return program(init_scheduled, run_scheduled, elementwise=elementwise)


def lift(
    owner: str,
    make: Callable[..., Rule],
    hyperparams: Mapping[str, Hyperparameter],
    kinds: Mapping[str, Kind],
    elementwise: bool,
    refuse_param: Callable[[Any], str],
) -> Program:
    """The transformation of a rule with hyperparameters that may be schedules and prefixes."""

    def rules_of(values: Mapping[str, Any], treedef: Any) -> list[Rule]:
        """Each array's rule; arrays with the same numbers share one."""
        columns: dict[str, list[Any]] = {}
        shared: dict[str, Any] = {}
        for n, prefix in values.items():
            tuples = kinds[n].is_tuple
            weak = _tree.map_prefix(_tree.weak, prefix, tuples=tuples)
            if _tree.is_one_value(weak, tuples=tuples):
                shared[n] = weak
            else:
                columns[n] = _tree.broadcast_prefix(weak, treedef, owner=owner, name=n, tuples=tuples)
        if not columns:
            return [call_rule(owner, make, shared)] * treedef.num_leaves
        made: dict[tuple[int, ...], Rule] = {}
        rules = []
        for own in zip(*columns.values(), strict=True):
            key = tuple(map(id, own))
            if key not in made:
                made[key] = call_rule(owner, make, {**shared, **dict(zip(columns, own, strict=True))})
            rules.append(made[key])
        return rules

    def any_value(name: str, prefix: Any) -> Any:
        return _tree.any_value(prefix, tuples=kinds[name].is_tuple)

    known: list[type] = []  # the state's class, once it was asked for

    def kind_of(rules: Sequence[Rule]) -> type:
        if not known:
            init = next(rule.init for rule in rules if rule.init is not None)
            known.append(type(jax.eval_shape(init, jax.ShapeDtypeStruct((2, 2), jnp.float32))))
        return known[0]

    def init(params: PyTree, values: Mapping[str, Any]) -> PyTree:
        leaves, treedef = _tree.flatten(params)
        _tree.check_params(leaves, treedef, owner, refuse_param)
        rules = rules_of(values, treedef)
        some = rules or [call_rule(owner, make, {n: any_value(n, prefix) for n, prefix in values.items()})]
        if all(rule.init is None for rule in some):
            return EmptyState()
        inits = [rule.init for rule in rules]
        try:
            states = [None if x is None or i is None else _init_array(i, x) for x, i in zip(leaves, inits, strict=True)]
        except Refused as refused:
            _checks.fail(owner, *refused.args)
        kind = next((type(s) for s in states if s is not None), None) or kind_of(some)
        return _transpose(kind, states, treedef, {"step": _tree.zero_step(leaves), **_first_shared(kind, states, some)})

    def run(
        leaves: Leaves, state: PyTree, extra: dict[str, Any], values: Mapping[str, Any]
    ) -> tuple[list[Any], PyTree]:
        del extra
        rules = rules_of(values, leaves.treedef)
        stateful = any(rule.init is not None for rule in rules)
        if not stateful or not rules:
            stored: list[Any] = [None] * len(rules)
            own_step: PyTree = None
        else:
            stored, own_step = _stored(owner, state, kind_of(rules), leaves)
        arguments = [
            None if g is None else _arguments(owner, rule, leaves, i)
            for i, (g, rule) in enumerate(zip(leaves.updates, rules, strict=True))
        ]
        total = _total(rules, leaves.updates, stored, arguments)
        results = []
        for i, (g, rule, old, own) in enumerate(zip(leaves.updates, rules, stored, arguments, strict=True)):
            if g is None:
                results.append((None, old))
                continue
            assert own is not None
            if "total" in own:
                own["total"] = total
            results.append(_update(owner, rule, g, old, own, leaves.treedef, i))
        updates = [u for u, _ in results]
        observe = OBSERVE.get()
        if observe is not None:
            observe(make, values, leaves, updates)
        if not stateful or not rules:
            return updates, state
        moved = next((new for new, (u, _) in zip([s for _, s in results], results, strict=True) if u is not None), None)
        shared = {n: getattr(state if moved is None else moved, n) for n in _tree.shared_fields(state)}
        return updates, _transpose(type(state), [s for _, s in results], leaves.treedef, {"step": own_step, **shared})

    made = follow_schedules(owner, hyperparams, kinds, init, run, elementwise=elementwise)
    made.definition = Definition(owner, make, hyperparams, kinds, elementwise, refuse_param)
    return made


def call_rule(owner: str, make: Callable[..., Rule], values: Mapping[str, Any]) -> Rule:
    try:
        return make(**values)
    except Refused as refused:
        _checks.fail(owner, *refused.args)


def _init_array(init: Callable[[Any], Any], param: Any) -> Any:
    """A parameter's state, beside it; of an abstract parameter an abstract one."""
    if not isinstance(param, jax.ShapeDtypeStruct):
        array = jnp.asarray(param)
        return jax.tree.map(lambda x: _tree.beside(array, x), init(array))
    state = jax.eval_shape(init, jax.ShapeDtypeStruct(param.shape, param.dtype))
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding)  # noqa: E731
    return jax.tree.map(lambda x: like(x) if x.shape == param.shape else x, state)


def _stored(owner: str, state: PyTree, kind: Any, leaves: Leaves) -> tuple[list[Any], PyTree]:
    """Each leaf's state as it is stored, with its own count after this update; and the state's."""
    if not isinstance(state, kind):
        raise ValueError(wrong_state(owner, kind, state))
    fields, shared = kind._fields, _tree.shared_fields(state)
    try:
        own_fields = [n for n in fields if n != "step" and n not in shared]
        columns = {n: leaves.treedef.flatten_up_to(getattr(state, n)) for n in own_fields}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{owner}: the state must be one of init(params) for parameters like the updates; the order of arguments "
            "is update(updates, state, params)"
        ) from error
    step = None
    if "step" in fields:
        kept = zip(*columns.values(), strict=True)
        holes = [all(x is None for x in own) for own in kept]
        if leaves.params is not None:
            holes = [p is None for p in leaves.params]
        step = _tree.advance(state.step, leaves.updates, leaves.treedef, holes)
        counts = _tree.broadcast_prefix(step, leaves.treedef, owner=owner, name="step")
        floats: dict[int, Any] = {}  # one conversion for all leaves that share a count
        for count in counts:
            if count is not None and id(count) not in floats:
                floats[id(count)] = _tree.weak(count)
        columns["step"] = [None if count is None else floats[id(count)] for count in counts]
    columns.update((n, [getattr(state, n)] * leaves.treedef.num_leaves) for n in shared)
    return [type(state)(*own) for own in zip(*(columns[n] for n in fields), strict=True)], step


def wrong_state(owner: str, kind: type, state: Any) -> str:
    got = "the parameters" if isinstance(state, dict | list) else type(state).__name__
    return (
        f"{owner}: the state must be a {kind.__name__}, which init(params) returns, got {got}; the order of arguments "
        "is update(updates, state, params)"
    )


def _arguments(owner: str, rule: Rule, leaves: Leaves, i: int) -> dict[str, Any]:
    asked = asked_for(rule.update) | (asked_for(rule.total) if rule.total is not None else frozenset())
    if not asked:
        return {}
    if "param" in asked and leaves.params is None:
        raise ValueError(f"{owner}: update needs the parameters; call update(updates, state, params)")
    known = {
        "param": leaves.params and leaves.params[i],
        "dtype": leaves.dtypes[i],
        "update_dtype": leaves.narrow[i],
        "total": None,
    }
    return {name: known[name] for name in asked}


def asking(fn: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A function of a rule with the names that it asks for, where its signature does not say so."""
    fn.asks = frozenset(names)  # pyright: ignore[reportFunctionMemberAccess]
    return fn


def asked_for(fn: Any) -> frozenset[str]:
    """What a function of a rule asks for by keyword."""
    if hasattr(fn, "asks"):
        return fn.asks
    code = getattr(fn, "__code__", None)
    return _keywords_of_code(code) if code is not None else _keywords(fn)


@functools.lru_cache(maxsize=4096)
def _keywords_of_code(code: Any) -> frozenset[str]:
    return frozenset(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


def _keywords(fn: Any) -> frozenset[str]:
    parameters = inspect.signature(fn).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _total(rules: Sequence[Rule], updates: Sequence[Any], stored: Sequence[Any], arguments: Sequence[Any]) -> Any:
    if all(rule.total is None for rule in rules):
        return None
    own = []
    for g, rule, old, known in zip(updates, rules, stored, arguments, strict=True):
        if g is not None and rule.total is not None:
            given = {name: known[name] for name in asked_for(rule.total)}
            values = coalesce(g).values if is_rows(g) else g
            own.append(rule.total(values, *([] if old is None else [_compute(old)]), **given))
    if not own:
        return None
    joined = functools.reduce(lambda a, b: jax.tree.map(rules[0].join, a, b), own)
    reduce = REDUCE.get()
    return joined if reduce is None else reduce(joined, rules[0].join)


def _update(owner: str, rule: Rule, g: Any, old: Any, known: dict[str, Any], treedef: Any, i: int) -> tuple[Any, Any]:
    given = {name: known[name] for name in asked_for(rule.update)}
    place = lambda: f"{owner}: state of updates{_tree.path_of(treedef, i)}"  # noqa: E731
    if not is_rows(g):
        return _update_array(rule, g, old, given, place)
    if rule.rows == "refuse":
        raise RuntimeError(f"{owner} does not support sparse gradients; make them dense")
    if rule.rows == "dense":
        like = next(x for n, x in zip(old._fields, old, strict=True) if n != "step" and x is not None)
        if is_rows(given.get("param")):
            # Of a parameter that is given as rows, too, the others are not read: its decay is 0, or it was refused.
            given["param"] = to_dense(given["param"], like)
        return _update_array(rule, to_dense(g, like), old, given, place)
    indices, values = coalesce(g)
    if "param" in given:
        given["param"] = take_rows(given["param"], indices)
    if old is None:
        return RowSparse(indices, _update_array(rule, values, None, given, place)[0]), None
    rows = type(old)(*(x if n == "step" else take_rows(x, indices) for n, x in zip(old._fields, old, strict=True)))
    new, new_rows = _update_array(rule, values, rows, given, place)
    put = (
        x if n == "step" else put_rows(before, indices, x)
        for n, before, x in zip(old._fields, old, new_rows, strict=True)
    )
    return RowSparse(indices, new), type(old)(*put)


def _update_array(
    rule: Rule, g: jax.Array, old: Any, given: Mapping[str, Any], place: Callable[[], str]
) -> tuple[Any, Any]:
    if old is None:
        return rule.update(g, **given), None
    new, state = rule.update(g, _compute(old), **given)
    if new.shape != g.shape:
        raise ValueError(f"{place()} must fit its gradient, of shape {g.shape}, got an update of shape {new.shape}")
    fields = []
    for n, before, after in zip(old._fields, old, state, strict=True):
        if n == "step" or before is None:
            fields.append(before)
        else:
            fields.append(jax.tree.map(functools.partial(_store, place, n), before, after))
    return new, type(old)(*fields)


def _store(place: Callable[[], str], name: str, before: jax.Array, after: jax.Array) -> jax.Array:
    stored = _tree.from_compute(jnp.asarray(after), before.dtype)
    if stored.shape != before.shape:
        raise ValueError(
            f"{place()} must fit its gradient: {name} has shape {before.shape} and would get {stored.shape}"
        )
    return stored


def _compute(state: Any) -> Any:
    """A state as rules see it."""
    return type(state)(
        *(
            x if x is None or n == "step" else jax.tree.map(_tree.to_compute, x)
            for n, x in zip(state._fields, state, strict=True)
        )
    )


def _transpose(kind: Any, states: Sequence[Any], treedef: Any, once: Mapping[str, Any]) -> Any:
    """A state of trees from one state per leaf, and what there is once."""
    return kind(
        *(
            once[n] if n in once else treedef.unflatten([None if s is None else getattr(s, n) for s in states])
            for n in kind._fields
        )
    )


def _first_shared(kind: Any, states: Sequence[Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """What a new state keeps once: as each array would have it, in the widest of their dtypes."""
    names = _tree.shared_fields(kind)
    if not names:
        return {}
    init = next(rule.init for rule in rules if rule.init is not None)
    known = [s for s in states if s is not None] or [init(jnp.zeros(()))]
    dtypes = {n: functools.reduce(jnp.promote_types, [getattr(s, n).dtype for s in known]) for n in names}
    return {n: _as_dtype(getattr(known[0], n), dtype) for n, dtype in dtypes.items()}


def _as_dtype(x: Any, dtype: Any) -> Any:
    return x.update(dtype=dtype) if isinstance(x, jax.ShapeDtypeStruct) else x.astype(dtype)
