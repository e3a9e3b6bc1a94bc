"""Networks that embed the condition of a context, and the layers through which contexts see it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from arcsm import registry
from arcsm._runtime.conditions import CLASSES, VECTOR, combine
from arcsm._runtime.modes import evaluation_mode


class ConditionNet(nn.Module, ABC):
    """A network that embeds the condition of a model, and is trained with it: the ``condition_net`` of a context.

    Derive from this class, define :meth:`forward`, and :func:`arcsm.register` the class to save models with it. The
    constructor annotates its arguments and stores each as an attribute of the same name, from which the network is
    rebuilt.

    Example:
        >>> import arcsm
        >>> @arcsm.register
        ... class Perceptron(arcsm.ConditionNet):
        ...     def __init__(self, features: int, width: int = 16) -> None:
        ...         super().__init__()
        ...         self.features, self.width = features, width
        ...         self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        ...
        ...     def forward(self, condition):
        ...         return self.layers(condition)
        >>> made = arcsm.MADE(2, 4, (16,), condition_features=3, condition_net=Perceptron(3))
        >>> made(torch.zeros(5, 2), torch.zeros(5, 3)).shape
        torch.Size([5, 2, 4])
    """

    seam: ClassVar[registry.Seam] = "condition_net"

    @abstractmethod
    def forward(self, condition: Any) -> Tensor:
        """Return embeddings ``(B, E)`` of conditions.

        The conditions are vectors ``(B, F)``, int64 labels ``(B,)`` or, for a context with both, a mapping
        ``{"classes": labels, "vector": vectors}``.
        """

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, ready for JSON; see :meth:`arcsm.Context.config`."""
        return registry.constructor_arguments(self)


class ClassAndVector(nn.Module):
    """The sum of an embedding of the class and a linear map of the vector, ``(*, size)``."""

    def __init__(self, classes: int, features: int, size: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, size)
        self.vector = nn.Linear(features, size, bias=False)

    def forward(self, condition: Mapping[str, Tensor]) -> Tensor:
        return cast(Tensor, self.classes(condition[CLASSES]) + self.vector(condition[VECTOR]))


class NoCondition(nn.Module):
    """The layer of a context without conditions: it maps ``None`` to zero."""

    def forward(self, condition: None) -> Tensor:
        return torch.zeros(())


def condition_layer(classes: int, features: int, size: int) -> nn.Module:
    """Return a map of labels below ``classes``, vectors of ``features`` numbers, or both, to ``(*, size)``."""
    if not classes and not features:
        return NoCondition()
    if classes and features:
        return ClassAndVector(classes, features, size)
    return nn.Embedding(classes, size) if classes else nn.Linear(features, size, bias=False)


def build_net(net: nn.Module | Mapping[str, Any] | None) -> nn.Module | None:
    """Return a condition network, built if it is given by its configuration."""
    if net is None or isinstance(net, nn.Module):
        return net
    if not isinstance(net, Mapping):
        raise ValueError(f"condition_net: expected a torch.nn.Module, got {type(net).__name__}")
    return cast(nn.Module, registry.build("condition_net", net))


def net_config(net: nn.Module) -> dict[str, Any]:
    """Return the configuration from which :func:`build_net` builds a network.

    Raises:
        ValueError: If the network is not a registered :class:`ConditionNet`.
    """
    if not isinstance(net, ConditionNet):
        raise ValueError(
            f"condition_net: {type(net).__name__} is not a ConditionNet, so it cannot be saved; derive your network "
            "from arcsm.ConditionNet and register it"
        )
    registry.check_registered("condition_net", net)
    return {"kind": type(net).__name__, **net.config()}


@torch.no_grad()
def embedding_size(net: nn.Module, classes: int, features: int) -> int:
    """Return the size of a network's embeddings, which it computes for two conditions."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    labels = torch.zeros(2, dtype=torch.long, device=like.device)
    vectors = like.new_zeros(2, features)
    condition = combine(labels if classes else None, vectors if features else None)
    try:
        with evaluation_mode(net):
            embedded = net(condition)
    except (RuntimeError, TypeError, IndexError, AttributeError, KeyError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"condition_net: rejects its condition ({type(error).__name__}: {message})") from error
    check_embeddings(embedded, 2)
    return int(embedded.shape[1])


def check_embeddings(embedded: object, rows: int, size: int | None = None) -> None:
    """Check that a condition network has returned one vector for each row."""
    shape = tuple(embedded.shape) if isinstance(embedded, Tensor) else type(embedded).__name__
    expected = f"({rows}, {'E' if size is None else size})"
    if not isinstance(embedded, Tensor) or embedded.ndim != 2 or not embedded.is_floating_point():
        raise ValueError(f"condition_net: expected embeddings {expected}, got {shape}")
    if len(embedded) != rows or (embedded.shape[1] != size if size is not None else not embedded.shape[1]):
        raise ValueError(f"condition_net: expected embeddings {expected}, got {shape}")
