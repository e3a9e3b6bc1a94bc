"""The contract of a context network."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from arcsm._runtime.conditions import CLASSES, VECTOR, Condition, check_type, combine, flatten_rows
from arcsm._runtime.devices import constant
from arcsm._runtime.random import Source
from arcsm._runtime.sizes import check_size
from arcsm.contexts.condition_nets import build_net, check_embeddings, condition_layer, embedding_size, net_config
from arcsm.errors import all_finite, readable
from arcsm.registry import Seam, constructor_arguments

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Order = Sequence[int] | Tensor  #: A permutation of the dimensions, ``(D,)``, or one for each row, ``(*, D)``.


class TrainingTerms(NamedTuple):
    """The ``N`` conditionals that a training step evaluates; the weighted sum of their losses is that of the batch."""

    context: Tensor  # (N, C)
    position: Tensor | None = None  # (N,) of their values among the B * D of the batch; None for all of them, in order
    weight: Tensor | None = None  # (N,) of their losses; None for 1

    def select(self, values: Tensor) -> Tensor:
        """Return those of the values ``(B, D)`` that belong to the conditionals, ``(N,)``."""
        return values.flatten() if self.position is None else values.flatten()[self.position]


class Context(nn.Module, ABC):
    """A network :math:`c_d = c(x_{<d})` that summarises, for each dimension, the dimensions before it.

    It has two forms that must give the same numbers: :meth:`forward` for whole rows, which training and densities use,
    and :meth:`begin` and :meth:`step` for one dimension after another, which sampling uses.

    To write your own, derive from this class and define :meth:`forward`, :meth:`begin` and :meth:`step`. The
    constructor sets the attributes below. It annotates its arguments and stores each as an attribute of the same name;
    one of them is ``context_features`` and one is named by ``data_argument``. :func:`arcsm.register` the class to save
    models with it, and test it with :func:`arcsm.check`.

    Attributes:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of each :math:`c_d`.
        order: The order of the chain rule, a permutation of ``range(features)``: ``order[i]`` is the feature at
            position ``i``. In :math:`x_{<d}`, "before" refers to this order.
        condition_features: Size :math:`F` of the vectors that rows are conditioned on; 0 for none.
        classes: Number of classes that rows are conditioned on; 0 for none. If both are positive, conditions are
            mappings ``{"classes": labels, "vector": vectors}``.
        condition_net: A network that embeds the conditions, trained with the context; see :class:`ConditionNet`.
        missing: Whether values may be NaN, which marks them as missing.
        any_order: Whether :meth:`forward` and :meth:`begin` take an ``order``; see :class:`AnyOrder`.
        levels: Number of levels of each column, 0 for numbers, or ``None`` if the context reads all as numbers.
        located: Whether the last two features of a context are a location and a log scale, for a :class:`LocatedHead`.
        noise_scale: The standard deviation of the noise that training adds to the values which contexts see, in units
            of that of the ladder; one number, or one for each dimension.
        data_argument: The argument of the constructor that is set from the data in a run configuration: ``features``,
            or ``image_shape`` as (channels, height, width).
    """

    seam: ClassVar[Seam] = "context"
    data_argument: ClassVar[Literal["features", "image_shape"]] = "features"
    missing: bool = False
    any_order: bool = False
    levels: tuple[int, ...] | None = None
    located: bool = False
    noise_scale: float | Tensor = 1.0
    condition_features: int = 0
    classes: int = 0
    condition_net: nn.Module | None

    features: int
    context_features: int
    order: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.register_module("condition_net", None)

    @abstractmethod
    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the contexts of all dimensions.

        The context of a dimension depends on the dimensions before it in ``order``, and rows do not depend on one
        another, in training mode too.

        Arguments:
            x: Rows in standardised units, ``(*, D)``.
            condition: Vectors ``(*, F)`` in standardised units or labels ``(*)``, or one vector ``(F,)`` or label
                ``()`` for all rows. For a context with both, a mapping ``{"classes": labels, "vector": vectors}``.

        Returns:
            ``(*, D, C)``, by feature: ``[..., d, :]`` is the context of feature ``d``, whatever the order.

        Raises:
            ValueError: If the shape of ``x`` or the condition is wrong.
        """

    def in_single_precision(self, x: Tensor, condition: Condition | None = None, order: Order | None = None) -> Tensor:
        """Return :meth:`forward` where errors of single precision do not matter, which may be faster."""
        contexts: Tensor = self(x, condition, **order_arguments(self, order))
        return contexts

    @abstractmethod
    def begin(self, batch_shape: Sequence[int], condition: Condition | None = None) -> Any:
        """Return the state before the first step for a batch of rows, with gradients switched off.

        ``batch_shape`` is the leading dimensions ``*`` of the rows, and the condition is as in :meth:`forward`.
        """

    @abstractmethod
    def step(self, state: Any, x_previous: Tensor | None) -> Tensor:
        """Return the context of the next feature in ``order``, ``(*, C)``, with gradients switched off.

        Arguments:
            state: The state from :meth:`begin`, which is updated in place. States are independent of one another.
            x_previous: Values of the feature at the position before, ``(*,)``; ``None`` at the first step.
        """

    def select(self, state: Any, rows: Tensor) -> None:
        """Replace the rows of a state for a batch ``(B,)`` by some of them, repeated or reordered, in place.

        The indices ``rows (M,)`` are from 0 to ``B - 1``; the batch then has the shape ``(M,)``. This method is
        optional. Only particle filters need it, and by default it raises ``NotImplementedError``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support the selection of rows")

    def absent(self, state: Any, d: int) -> Tensor | None:
        """Return the rows in which dimension ``d`` has no value, or ``None`` if it has one in all; see AnyOrder."""
        return None

    def training_terms(self, x: Tensor, condition: Condition | None = None, generator: Source = None) -> TrainingTerms:
        """Return the conditionals by which a training step estimates the loss of rows ``(B, D)``.

        By default they are all conditionals in the order of the context. Conditions are as in :meth:`forward`; the
        generator is the source of what a subclass draws.
        """
        return TrainingTerms(self(x, condition).flatten(0, -2))

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, ready for JSON; saved models are rebuilt from them.

        They are the attributes with the names of the arguments. Override it if an attribute differs from its argument.
        """
        arguments = constructor_arguments(self)
        if isinstance(net := arguments.get("condition_net"), nn.Module):
            arguments["condition_net"] = net_config(net)
        return arguments

    # Conditions, for the methods of subclasses

    def set_condition(
        self, classes: int, condition_features: int, net: nn.Module | Mapping[str, Any] | None = None
    ) -> None:
        """Set the attributes of the condition from arguments of the constructor.

        Raises:
            ValueError: If a size is negative or too large, or a network has no condition to embed or rejects it.
        """
        check_size(type(self).__name__, least=0, condition_features=condition_features, classes=classes)
        self.condition_features, self.classes, self.condition_net = condition_features, classes, build_net(net)
        if self.condition_net is not None:
            if not self.is_conditional:
                raise ValueError("condition_net: needs a condition; set classes, condition_features, or both")
            self._embedding_size = embedding_size(self.condition_net, classes, condition_features)

    @property
    def is_conditional(self) -> bool:
        """Whether rows are conditioned on anything."""
        return bool(self.classes or self.condition_features)

    def condition_layer(self, size: int) -> nn.Module:
        """Return a new layer that maps what :meth:`embed_condition` returns to ``(*, size)``, and ``None`` to zero."""
        if self.condition_net is not None:
            return condition_layer(0, self._embedding_size, size)
        return condition_layer(self.classes, self.condition_features, size)

    def embed_condition(self, condition: Condition | None, batch_shape: Sequence[int]) -> Condition | None:
        """Check a condition, give each row its own, and embed it if there is a ``condition_net``."""
        condition = self.check_condition(condition, batch_shape)
        if condition is None or self.condition_net is None:
            return condition
        embedded = self.condition_net(flatten_rows(condition, len(batch_shape)))  # (B, E)
        if not torch.compiler.is_compiling():  # the number of rows is then symbolic
            check_embeddings(embedded, math.prod(batch_shape), self._embedding_size)
        return embedded.reshape(*batch_shape, self._embedding_size)

    # Checks of arguments, for the methods of subclasses; each raises ValueError

    def check_input(self, x: Tensor) -> None:
        """Check that the rows ``x`` of :meth:`forward` have the shape ``(*, D)``."""
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x: expected shape (*, {self.features}), got {tuple(x.shape)}")

    def check_step(self, position: int, x_previous: Tensor | None) -> None:
        """Check that step number ``position`` exists, and gets ``None`` if it is the first and values if not."""
        if position >= self.features:
            raise ValueError(f"state: all {self.features} features of this batch are already known")
        if (x_previous is None) != (position == 0):
            expected = "None" if position == 0 else "a tensor"
            raise ValueError(f"x_previous: expected {expected} at step {position}")

    def check_selection(self, batch_shape: Sequence[int]) -> None:
        """Check that the state of :meth:`select` has a batch of shape ``(B,)``."""
        if len(batch_shape) != 1:
            raise ValueError(f"state: expected a batch of one dimension, got {tuple(batch_shape)}")

    def check_order(self, order: Order | None, batch_shape: Sequence[int]) -> Tensor:
        """Return an order as int64 ``(D,)`` or ``(*, D)`` on the device of the weights; ``self.order`` for ``None``."""
        features, device = self.features, next(self.parameters()).device
        if order is None:
            return constant(tuple(self.order), torch.long, device)
        checked = torch.as_tensor(order, device=device)
        if checked.dtype not in _INTEGERS or checked.shape not in ((features,), (*batch_shape, features)):
            shapes = " or ".join(map(str, dict.fromkeys(((features,), (*batch_shape, features)))))
            raise ValueError(f"order: expected integers {shapes}, got {checked.dtype} {tuple(checked.shape)}")
        checked = checked.long()
        known = readable(checked)
        if known is not None and not bool((known.sort(-1).values == torch.arange(features, device=device)).all()):
            raise ValueError(f"order: expected permutations of range({features})")
        return checked

    def arranged(self, order: Sequence[int]) -> list[int]:
        """Return some dimensions in an order that the context has, as close to the given one as possible."""
        return list(order)

    def resolved(self, x: Tensor) -> Tensor:
        """Return rows ``(*, D)`` with what their values imply about one another; by default nothing."""
        return x

    def check_condition(self, condition: Condition | None, batch_shape: Sequence[int]) -> Any:
        """Check a condition as :meth:`forward` gets it, and give each row of the batch its own.

        Return int64 labels ``(*)``, or vectors ``(*, F)`` in the type of the weights, both on their device, or a
        mapping of both, or ``None``.
        """
        classes, size = self.classes, self.condition_features
        if not self.is_conditional:
            if condition is not None:
                raise ValueError("condition: this model has none (condition_features=0, classes=0), got a tensor")
            return None
        labels, vectors = f"labels below {classes}", f"vectors (*, {size})"
        both = f"{{{CLASSES!r}: {labels}, {VECTOR!r}: {vectors}}}"
        expected = both if classes and size else labels if classes else vectors
        if condition is None:
            raise ValueError(f"condition: this model needs {expected}, got None")
        check_type(condition)
        if isinstance(condition, Mapping) != bool(classes and size):
            got = "a mapping" if isinstance(condition, Mapping) else "one tensor"
            raise ValueError(f"condition: this model needs {expected}, got {got}")
        given = condition if isinstance(condition, Mapping) else {CLASSES if classes else VECTOR: condition}
        return combine(
            _expanded(self._check_labels(given[CLASSES]), tuple(batch_shape)) if classes else None,
            _expanded(self._check_vectors(given[VECTOR]), (*batch_shape, size)) if size else None,
        )

    def _check_labels(self, condition: Tensor) -> Tensor:
        labels = readable(condition) if condition.dtype in _INTEGERS else None
        out_of_range = labels is not None and bool(((labels < 0) | (labels >= self.classes)).any())
        if condition.dtype not in _INTEGERS or out_of_range:
            raise ValueError(f"condition: expected integer labels from 0 to {self.classes - 1}")
        return condition.to(next(self.parameters()).device, torch.long)

    def _check_vectors(self, condition: Tensor) -> Tensor:
        size = self.condition_features
        if condition.shape[-1:] != (size,) or condition.is_complex():
            raise ValueError(
                f"condition: expected numbers of shape (*, {size}), got {condition.dtype} {tuple(condition.shape)}"
            )
        condition = condition.to(next(self.parameters()))
        if not all_finite(condition):
            raise ValueError("condition: holds NaN or infinity")
        return condition


def _expanded(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give each row its own label or vector."""
    try:
        return part.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"condition: expected one for each row {shape}, or one for all, got {tuple(part.shape)}"
        ) from error


def order_arguments(context: Context, order: Order | None) -> dict[str, Order]:
    """Return the keywords that give a context an order other than its own, none for ``None``.

    Raises:
        ValueError: If the context has one order only.
    """
    if order is None:
        return {}
    if not context.any_order:
        name = type(context).__name__
        raise ValueError(f"order: a {name} has the order {context.order!r:.60} only; use AnyOrder for others")
    return {"order": order}
