"""Export of a model's scores as a ``torch.export`` program, which runs without arcsm."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from arcsm._runtime.conditions import Condition, combine
from arcsm._runtime.modes import evaluation_mode
from arcsm.model import AutoregressiveModel


def export_scorer(model: AutoregressiveModel, level: int = -1) -> ExportedProgram:
    """Export the conditional scores at a noise level as a program that needs only torch.

    The program takes ``x (N, D)`` for any ``N`` and, if the model is conditional, the condition ``(N, F)``, labels
    ``(N,)``, or a mapping of both. It returns scores and derivatives like :meth:`AutoregressiveModel.score`, without
    checking its input.

    It runs on the device that the model is on. Save it with ``torch.export.save`` and run it with
    ``torch.export.load(path).module()(x)``.

    Example:
        >>> from arcsm import MADE, NoiseLadder, ScoreHead
        >>> model = AutoregressiveModel(MADE(3, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))
        >>> s, ds = export_scorer(model).module()(torch.zeros(5, 3))
        >>> s.shape
        torch.Size([5, 3])
    """
    classes, size = model.context.classes, model.context.condition_features
    labels, vectors = model.shift.new_zeros(2, dtype=torch.long), model.shift.new_zeros(2, size)
    condition = combine(labels if classes else None, vectors if size else None)
    example = (model.shift.new_zeros(2, model.features), *(() if condition is None else (condition,)))
    rows, scorer = Dim("rows", min=1), _Scorer(model, level)
    shapes = [{0: rows} if isinstance(part, Tensor) else {key: {0: rows} for key in part} for part in example]
    with torch.no_grad(), evaluation_mode(scorer):
        return torch.export.export(scorer, example, dynamic_shapes=shapes)


class _Scorer(nn.Module):
    def __init__(self, model: AutoregressiveModel, level: int) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        return self.model.score(x, self.level, condition)
