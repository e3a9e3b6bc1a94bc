"""Autoencoders: preparation of images, files, configuration."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import arcsm
from arcsm.implicit import (
    VAE,
    BernoulliDecoder,
    GaussianEncoder,
    GaussianImageDecoder,
    VAEConfig,
    fit_vae,
    load_vae,
    save_vae,
)  # fmt: skip
from small_vaes import IMAGES, gaussian_encoder, image_rows, seeded, small_vae


def test_prepare_binarises_by_grey_level_or_dequantises() -> None:
    grey = torch.tensor([[-1.0, 2.0 * 127 / 256 - 1.0, 2.0 * 255 / 256 - 1.0]]).expand(20_000, -1)
    metadata = {"image_shape": [1, 1, 3], "levels": 256}
    x = VAEConfig(hidden_features=(4,)).build(metadata).prepare(grey, seeded())
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 127 / 255, 1.0]), rtol=0.0, atol=0.015)
    conv = VAEConfig(networks="convolutional", channels=(4,)).build(IMAGES)
    x = conv.prepare(grey.reshape(-1)[:16_000].view(1000, 16), seeded())
    assert float(x.max()) < 1.0
    assert bool((x >= grey.reshape(-1)[:16_000].view(1000, 16)).all())


@pytest.mark.parametrize(("encoder", "networks"), [("implicit", "dense"), ("autoregressive", "convolutional")])
def test_save_and_load_round_trip(tmp_path: Path, encoder: str, networks: str) -> None:
    vae = small_vae(encoder, networks).eval()
    save_vae(vae, tmp_path / "run")
    loaded = load_vae(tmp_path / "run")
    assert torch.equal(vae.sample(3, seeded()), loaded.sample(3, seeded()))
    x = vae.prepare(image_rows(5), seeded())
    assert torch.equal(vae.reconstruct(x, seeded()), loaded.reconstruct(x, seeded()))
    with pytest.raises(ValueError, match=r"model\.safetensors: holds a vae, not an autoregressive model"):
        arcsm.load(tmp_path / "run")


def test_parts_that_a_configuration_does_not_describe_are_not_saved(tmp_path: Path) -> None:
    parts = VAEConfig(encoder="gaussian", networks="convolutional", channels=(4, 8), latents=2)
    metadata = {"image_shape": [1, 8, 8], "levels": 256}
    built = parts.build(metadata)

    class Laplace(GaussianEncoder):
        def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
            return super().draw(precomputed, noise.abs())

    own = copy.deepcopy(built.encoder)
    own.__class__ = Laplace
    sharp = GaussianImageDecoder(2, (1, 8, 8), (4, 8), log_std=-2.0)
    with pytest.raises(ValueError, match=r"model: decoder.log_std is -2.0, but -0\.6"):
        save_vae(VAE(built.encoder, sharp, parts, metadata), tmp_path / "run")
    other = VAE(own, built.decoder, parts, metadata)
    with pytest.raises(ValueError, match=r"model: encoder is a Laplace, but parts.build.. makes a Gau"):
        fit_vae(other, image_rows(8), image_rows(8), run=tmp_path / "run")


def test_invalid_files_and_configurations_are_rejected(tmp_path: Path) -> None:
    arcsm.save(arcsm.AutoregressiveModel(arcsm.MADE(2, 4, (8,)), arcsm.GaussianHead(4)), tmp_path)
    with pytest.raises(ValueError, match="not an autoencoder"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="does not describe an autoencoder"):
        VAE.from_config({"kind": "vae"})
    with pytest.raises(ValueError, match="model configuration: latents: 4096 with 4096 units each are too many"):
        VAE.from_config({"kind": "vae", "metadata": IMAGES, "parts": {"latents": 4096, "units": 4096}})


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"rows: expected images in \[-1, 1\], got values from"):
        small_vae().prepare(image_rows(5) * 255.0)
    with pytest.raises(ValueError, match="an autoencoder needs images"):
        VAEConfig().build({"columns": ["a"]})
    with pytest.raises(ValueError, match="the encoder gives 3, the decoder takes 2"):
        VAE(gaussian_encoder(), BernoulliDecoder(2, 5), VAEConfig(), IMAGES)
    with pytest.raises(ValueError, match=r"encode: expected whole numbers from 1 .*samples=0"):
        small_vae().encode(image_rows(5), 0)
