"""Sets of known values: the sums over those before each dimension, and the weights of rows in training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from arcsm._runtime.random import Source, stratified_uniform_like, uniform_like
from arcsm.contexts.parents import Parents

_BISECTIONS = 8  # of the power of the weights


def draw_sets(
    x: Tensor,
    parents: Parents,
    is_target: Tensor | None,
    complete_share: float,
    generator: Source,
    most: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw which of the values of rows ``(B, D)`` are in the set of each, for training.

    Of the ``m`` known targets, ``is_target (D,)`` or all, a set has ``k``, uniform on 0 to ``m - 1`` and stratified
    over the rows, or on 0 to ``most`` if that is less. Of the other values it has all, in a fraction of the rows, or a
    random part. A dimension and its parent count as one value.

    Returns:
        The numbers ``m`` and ``k``, ``(B, 1)``, and which values are in the sets, ``(B, D)``.
    """
    counted = ~x.isnan() if is_target is None else ~x.isnan() & is_target
    for d in parents.of:
        counted[:, d] = False
    priority = uniform_like(x, generator)
    of_counted = priority.masked_fill(~counted, 2.0)
    total = counted.sum(1, keepdim=True)
    sizes = total if most is None else total.clamp(max=most + 1)
    size = (stratified_uniform_like(x[:, :1], generator) * sizes).long()
    known = of_counted < of_counted.sort(1).values.gather(1, size)  # ties are too rare in single precision to matter
    if is_target is not None:
        u = uniform_like(x[:, :1], generator)
        share = (u - complete_share) / max(1.0 - complete_share, 1e-12)  # uniform where it is positive
        known |= ~is_target & ((u < complete_share) | (priority < share))
    for d, parent in parents.of.items():
        known[:, d] = known[:, parent]
    return total, size, known


def weights_of_sets(total: Tensor, size: Tensor, features: int, least: float) -> Tensor:
    """Return weights ``(B, 1)`` of rows with ``total (B, 1)`` known values and a set of a ``size (B, 1)``.

    They are in proportion to the numbers of sets and values that rows have, to a power with which the effective number
    of rows is at least a fraction of all that have a set of the size. Their mean over these is 1.
    """
    m, k = (torch.arange(float(count), device=total.device) for count in (features + 1, features))
    m = m[:, None]
    rows = (total == m.T).sum(0).to(m)[:, None] * (m > k)  # (D + 1, D)
    n = rows.sum(0).clamp(min=1.0)
    logs = m.log() + torch.lgamma(m.clamp(min=1.0)) - torch.lgamma(k + 1.0) - torch.lgamma((m - k).clamp(min=1.0))
    logs = torch.where(rows > 0.0, logs, -torch.inf)
    logs = (logs - logs.max(0).values).nan_to_num(nan=-torch.inf)

    def weights(power: Tensor) -> Tensor:
        unscaled = torch.where(rows > 0.0, (power * logs).exp(), 0.0)
        return unscaled * n / (rows * unscaled).sum(0).clamp(min=torch.finfo(m.dtype).tiny)

    def effective(power: Tensor) -> Tensor:
        return n / (rows * weights(power).square()).sum(0).clamp(min=torch.finfo(m.dtype).tiny)

    low, high = torch.zeros_like(k), torch.ones_like(k)
    low = torch.where(effective(high) >= least, high, low)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        enough = effective(middle) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return weights(low)[total, size.clamp(max=features - 1)]


def sum_before(values: Tensor, order: Tensor) -> Tensor:
    """Sum the values ``(B, D, E)`` of the dimensions before each one, in an order ``(D,)`` or ``(B, D)``."""
    index = order.expand(values.shape[0], -1).unsqueeze(-1).expand_as(values)
    sums = F.pad(values.gather(1, index)[:, :-1], (0, 0, 1, 0)).cumsum(1)
    return torch.empty_like(sums).scatter(1, index, sums)
