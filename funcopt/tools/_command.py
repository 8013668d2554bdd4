"""What a recipe does, before it runs, and what became of one, on the command line.

    python -m funcopt explain CONFIG --model MODULE:FUNCTION    groups, hyperparameters, schedule
    python -m funcopt memory CONFIG --model MODULE:FUNCTION     bytes of state, by key
    python -m funcopt convert CHECKPOINT --to torch|jax|optax   a checkpoint for another framework
    python -m funcopt compare A B                               where two optimizers part, and why
    python -m funcopt config                                    versions, devices, engines

With --json each prints one JSON object. The exit status is 0, 1 if `compare` finds a difference, 2 for bad input.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from funcopt._parts import key_name, names_of
from funcopt.config import explain
from funcopt.groups._params import is_torch_module, unwrap
from funcopt.interop_optax import from_optax_state, to_optax_state
from funcopt.tools._compare import compare
from funcopt.tools._show_config import read_config, show_config
from funcopt.tools._spelling import call, parse
from funcopt.tools._trials import as_numpy

_SHAPES = {"matrix": (4, 3), "vector": (3,)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, by default the process's, and returns the exit status."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where a user's modules are, wherever the command itself lies
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"funcopt {args.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m funcopt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text)
        own.set_defaults(run=run)
        own.add_argument("--json", action="store_true", help="print one JSON object")
        return own

    config = "a YAML or JSON file in any dialect of funcopt.config, or a name such as adamw"
    model = "a function without arguments that returns a torch module or a pytree of arrays"

    own = command("explain", _explain, "Which parameter gets which hyperparameters, by which rule, and the schedule.")
    own.add_argument("config", help=config)
    own.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help=model)
    own.add_argument("--steps-per-epoch", type=int, metavar="N", help="updates of an epoch, for a config's schedule")
    own.add_argument("--steps", type=int, default=1000, metavar="N", help="updates to show (default: %(default)s)")
    own.add_argument("--plot", metavar="FILE", help="draw groups, and schedules beside it (needs matplotlib)")

    own = command("memory", _memory, "What the state of an optimizer takes, without making it.")
    own.add_argument("config", help=config)
    own.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help=model)

    own = command("convert", _convert, "The state of an optimizer for another framework.")
    own.add_argument("checkpoint", help="what torch.save wrote, or an .npz file of this command's")
    own.add_argument("--to", required=True, choices=("torch", "jax", "optax"))
    own.add_argument("--optimizer", required=True, help='whose state it is: "adamw", "sgd(momentum=0.9)"')
    own.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help=model)
    own.add_argument("--output", required=True, metavar="FILE", help="where it goes: .npz for jax and optax")
    own.add_argument("--source", choices=("torch", "jax", "optax"), help="what it is; by default torch, of .npz jax")
    own.add_argument("--key", help="where in the file the optimizer's state_dict is, such as optimizer")

    own = command("compare", _compare, "Where two optimizers part on the same gradients, and the likely reason.")
    one = 'one of funcopt\'s, "adamw(lr=0.1)"; or any other, "torch.optim:AdamW(lr=0.1)", "optax:adamw(0.1)"'
    own.add_argument("a", help=one)
    own.add_argument("b", help="the other one")
    own.add_argument("--model", metavar="MODULE:FUNCTION", help=f"{model}; by default two small arrays")
    own.add_argument("--steps", type=int, default=10, metavar="N", help="updates (default: %(default)s)")
    own.add_argument("--dtype", choices=("float64", "float32"), default="float64")

    command("config", _config, "Versions, devices, engines, and what is missing.")
    return parser


def _explain(args: argparse.Namespace) -> int:
    found = explain(args.config, call(args.model), steps_per_epoch=args.steps_per_epoch)
    if args.plot:
        _draw(found, args.plot, args.steps)
    if args.json:
        schedules = {
            name: [float(value) for value in np.asarray(schedule(np.arange(args.steps)))]
            for name, schedule in found.schedules.items()
        }
        print(
            json.dumps(
                {
                    "algorithm": found.algorithm,
                    "hyperparams": {name: value for name, value in found.hyperparams.items() if not callable(value)},
                    "parameters": [row._asdict() for row in found.table.rows],
                    "groups": [total._asdict() for total in found.table.totals],
                    "schedules": schedules,
                },
                default=str,
            )
        )
    else:
        print(found.text(args.steps))
    return 0


def _draw(found: Any, path: str, steps: int) -> None:
    plot: Any = importlib.import_module("funcopt.plot")
    plot.groups(found.table).savefig(path)
    if found.schedules:
        stem, suffix = os.path.splitext(path)
        plot.schedules(found.schedules, steps).savefig(f"{stem}-schedules{suffix}")


def _memory(args: argparse.Namespace) -> int:
    found = explain(args.config, call(args.model)).memory()
    if args.json:
        rows = [row._asdict() for row in found.rows]
        total = {"bytes": found.bytes, "bytes_per_element": found.bytes_per_element}
        print(json.dumps({**total, "params": found.params, "params_bytes": found.params_bytes, "state": rows}))
    else:
        print(found)
    return 0


def _convert(args: argparse.Namespace) -> int:
    model = call(args.model)
    source = args.source or ("jax" if args.checkpoint.endswith(".npz") else "torch")
    name, factory = parse(args.optimizer)
    params = _params_of(model)
    tx = factory()
    template = tx.init(params)
    if source == "torch":
        state = _torch().read_state(args.checkpoint, args.key, template, params, _order_of(model))
    elif source == "jax":
        state = _read_arrays(args.checkpoint, template)
    else:
        state = from_optax_state(_read_arrays(args.checkpoint, _of_optax(name, factory).init(params)), template)
    if args.to == "torch":
        _torch().write_checkpoint(args.output, state, params, _order_of(model), factory)
        arrays = len(jax.tree.leaves(state))
    else:
        state = to_optax_state(state, _of_optax(name, factory).init(params)) if args.to == "optax" else state
        arrays = _write_arrays(args.output, state)
    report = {"optimizer": name, "from": source, "to": args.to, "arrays": arrays, "output": args.output}
    print(json.dumps(report) if args.json else f"{name}: {arrays} arrays of {source}'s for {args.to} in {args.output}")
    return 0


def _torch() -> Any:
    """What needs torch, only where torch's models and files are."""
    from funcopt.torch_bridge import _tools

    return _tools


def _params_of(model: Any) -> Any:
    """The parameters as a pytree; of a torch module one by name."""
    inner = unwrap(model)
    if not is_torch_module(inner):
        return inner
    return {name: as_numpy(p) for name, p in inner.named_parameters()}


def _order_of(model: Any) -> list[str]:
    inner = unwrap(model)
    return [name for name, _ in inner.named_parameters()] if is_torch_module(inner) else [*names_of(inner)[0]]


def _of_optax(name: str, factory: Any) -> Any:
    theirs = getattr(optax, name, None)
    if theirs is None:
        raise ValueError(f"--to optax: optax must have an optimizer of that name, got {name}")
    momentum = getattr(factory, "keywords", {}).get("momentum")
    return theirs(1.0) if momentum is None else theirs(1.0, momentum=momentum)


def _paths(state: Any) -> tuple[list[str], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    return [".".join(map(key_name, path)) for path, _ in leaves], treedef


def _write_arrays(path: str, state: Any) -> int:
    names, _ = _paths(state)
    arrays = dict(zip(names, map(np.asarray, jax.tree.leaves(state)), strict=True))
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return len(arrays)


def _read_arrays(path: str, template: Any) -> Any:
    names, treedef = _paths(template)
    with np.load(path, allow_pickle=False) as found:
        missing = [name for name in names if name not in found.files]
        if missing:
            raise ValueError(f"{path} must have the arrays of this optimizer's state, and lacks {', '.join(missing)}")
        return treedef.unflatten([found[name] for name in names])


def _compare(args: argparse.Namespace) -> int:
    (_, a), (_, b) = parse(args.a), parse(args.b)
    generator = np.random.default_rng(0)
    params = call(args.model) if args.model else {k: generator.normal(size=shape) for k, shape in _SHAPES.items()}
    found = compare(a, b, params, args.steps, dtype=args.dtype)
    if args.json:
        rows = [difference._asdict() for difference in found.differences]
        own = {"equal": found.equal, "steps": found.steps, "difference": found.difference, "reasons": found.reasons}
        print(json.dumps({**own, "differences": rows}))
    else:
        print(found)
    return 0 if found.equal else 1


def _config(args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps(read_config()))
    else:
        show_config()
    return 0
