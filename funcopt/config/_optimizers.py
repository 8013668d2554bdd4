"""Several optimizers that are one config."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks


class Optimizers(dict[str, Any]):
    """Several optimizers by name of the submodule that each is for, which step one by one, as MMEngine's
    `OptimWrapperDict`: bridges for torch, transformations of the submodules' parameters for a pytree.
    """

    config: dict[str, Any]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets the gradients of all bridges to None, or zero."""
        for optimizer in self.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of each bridge by its name."""
        return {name: optimizer.state_dict() for name, optimizer in self.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the state of each bridge.

        Raises:
            ValueError: unless the names are the same.
        """
        if state_dict.keys() != self.keys():
            _checks.fail("Optimizers", "state_dict", f"of {', '.join(self)}", [*state_dict])
        for name, optimizer in self.items():
            optimizer.load_state_dict(state_dict[name])
