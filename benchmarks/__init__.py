"""How fast funcopt is, against what people would use instead: `python -m benchmarks --help`.

    _workloads   what is updated: the shapes of real models
    _cases       what is done: algorithms in torch, on the bridge, in funcopt's JAX and in optax
    _measure     how it is timed: paired, interleaved rounds, and when a run is too noisy to say anything
    _bridge, _jax, _growth, _habits, _memory     the sections, each of which yields findings by name
    _goals       what is to be reached, as data
    _report      terminal and JSON

It needs the `torch` extra.
"""
