"""The context that queries need: one that has every order."""

from arcsm.contexts import AnyOrder
from arcsm.model import AutoregressiveModel


def every_order(model: AutoregressiveModel) -> AnyOrder:
    """Return the context of a model that has every order.

    Raises:
        ValueError: If the context is not an :class:`~arcsm.AnyOrder`.
    """
    context = getattr(model.context, "_orig_mod", model.context)  # not compiled
    if not isinstance(context, AnyOrder):
        why = (
            "which takes an order, but no known values in its steps; derive it from AnyOrder"
            if context.any_order
            else "which knows the conditionals of one order only; arcsm.denoise.particle_filter accepts it"
        )
        raise ValueError(f"model: needs an AnyOrder context, got a {type(context).__name__}, {why}")
    return context
