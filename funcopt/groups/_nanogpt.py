"""The weight-decay rule of nanoGPT."""

from funcopt.groups._rule import Rule


def nanogpt_rules() -> list[Rule]:
    """Decay for matrices and embeddings, that is for two dimensions and more; none for biases and norms.

    Returns:
        The rules.

    Example:
        >>> nanogpt_rules()[0].settings
        {'decay_mult': 0.0}
    """
    return [Rule(ndim=lambda ndim: ndim < 2, decay_mult=0.0, name="ndim < 2")]
