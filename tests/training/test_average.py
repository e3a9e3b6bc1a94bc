"""Averaged weights are those of ``AveragedModel``."""

import copy

import torch
from torch.optim.swa_utils import AveragedModel

from arcsm.training.config import TrainConfig
from arcsm.training.density import DensityTask
from arcsm.training.optimization import averaging
from small_models import make_model


def test_averaged_weights_and_buffers_are_those_of_update_parameters() -> None:
    torch.manual_seed(0)
    model = make_model()
    x = torch.randn(50, model.features)
    task = DensityTask(model, x, None, TrainConfig(steps=10, batch_size=8, ema=0.9, device="cpu"))
    expected = AveragedModel(copy.deepcopy(model), multi_avg_fn=averaging(0.9))
    for step in range(5):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * (step + 1.0))
        task.update_average()
        expected.update_parameters(model)
        found = task.average.state_dict()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found[name], tensor), name
