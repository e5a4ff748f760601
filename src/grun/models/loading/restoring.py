"""Models of the caller's own, used by jobs and given back as they were."""

from __future__ import annotations

__all__ = ["Snapshot"]

from torch import nn

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Snapshot:
    """The modules, hooks, attributes and modes of a model, to be restored.

    PEFT puts adapters into the model itself: it replaces modules and freezes parameters. Values of parameters are not kept:
    what trains the weights needs a copy of the model.

    Args:
        model: the snapshot is of its present state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [
            (module, dict(module._modules), {name: dict(getattr(module, name)) for name in HOOKS}, module.training)
            for module in model.modules()
        ]
        self._attributes = set(model.__dict__)
        self._trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Make the model what it was."""
        for module, children, hooks, training in self._modules:
            module._modules.clear()
            module._modules.update(children)
            for name, known in hooks.items():
                current = getattr(module, name)
                current.clear()
                current.update(known)
            module.training = training
        for name in set(self._model.__dict__) - self._attributes:
            del self._model.__dict__[name]
        for parameter, needed in self._trainable:
            parameter.requires_grad = needed
            parameter.grad = None
