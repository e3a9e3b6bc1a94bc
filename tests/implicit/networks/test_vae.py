"""Autoencoders: preparation of images, files, configuration."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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


@pytest.mark.parametrize("encoder", ["gaussian", "implicit", "autoregressive"])
@pytest.mark.parametrize("networks", ["dense", "convolutional"])
def test_save_and_load_round_trip(tmp_path: Path, encoder: str, networks: str) -> None:
    torch.manual_seed(0)
    parts = VAEConfig(encoder=encoder, networks=networks, latents=2, hidden_features=(8,), channels=(4, 4))  # type: ignore[arg-type]
    vae = parts.build(IMAGES).eval()
    save_vae(vae, tmp_path / "run")
    loaded = load_vae(tmp_path / "run")
    assert torch.equal(vae.sample(3, seeded()), loaded.sample(3, seeded()))
    x = vae.prepare(image_rows(5), seeded())
    assert torch.equal(vae.reconstruct(x, seeded()), loaded.reconstruct(x, seeded()))
    with pytest.raises(ValueError, match=r"model\.safetensors: holds a vae, not an autoregressive model"):
        arcsm.load(tmp_path / "run")


def test_an_autoencoder_that_no_file_could_hold_is_not_saved(tmp_path: Path) -> None:
    vae = VAEConfig(latents=2, hidden_features=(8,)).build(IMAGES)
    vae.decoder.extra = torch.nn.Linear(2, 3)
    for write in (save_vae, lambda vae, run: fit_vae(vae, image_rows(8), image_rows(8), run=run)):
        with pytest.raises(
            ValueError, match=r"tensor decoder\.extra\.bias: numbers of shape \(3,\), but absent in a model"
        ):
            write(vae, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_that_a_configuration_does_not_describe_are_not_saved(tmp_path: Path) -> None:
    parts = VAEConfig(encoder="gaussian", networks="convolutional", channels=(4, 8), latents=2)
    metadata = {"image_shape": [1, 8, 8], "levels": 256}
    built = parts.build(metadata)

    class Laplace(GaussianEncoder):
        def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
            return super().draw(precomputed, noise.abs())

    own_encoder = copy.deepcopy(built.encoder)
    own_encoder.__class__ = Laplace
    sharp = GaussianImageDecoder(2, (1, 8, 8), (4, 8), log_std=-2.0)
    for vae, message in (
        (VAE(built.encoder, sharp, parts, metadata), r"model: decoder.log_std is -2.0, but -0\.6"),
        (
            VAE(own_encoder, built.decoder, parts, metadata),
            "model: encoder is a Laplace, but parts.build.. makes a Gau",
        ),
    ):
        for write in (save_vae, lambda vae, run: fit_vae(vae, image_rows(8), image_rows(8), run=run)):
            with pytest.raises(ValueError, match=message):
                write(vae, tmp_path / "run")
    save_vae(built, tmp_path / "run")


def test_invalid_files_and_configurations_are_rejected(tmp_path: Path) -> None:
    arcsm.save(arcsm.AutoregressiveModel(arcsm.MADE(2, 4, (8,)), arcsm.GaussianHead(4)), tmp_path)
    with pytest.raises(ValueError, match="not an autoencoder"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="does not describe an autoencoder"):
        VAE.from_config({"kind": "vae"})
    with pytest.raises(ValueError, match="model configuration: latents: 4096 with 4096 units each are too many"):
        VAE.from_config({"kind": "vae", "metadata": IMAGES, "parts": {"latents": 4096, "units": 4096}})
    with pytest.raises(ValueError, match="model configuration: latents"):
        VAE.from_config({"kind": "vae", "metadata": IMAGES, "parts": {"latents": 0}})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_vae().prepare(image_rows(5) * 255.0), r"rows: expected images in \[-1, 1\], got values from"),
        (lambda: small_vae().prepare(image_rows(5) * math.nan), "rows: hold NaN"),
        (lambda: VAEConfig().build({"columns": ["a"]}), "an autoencoder needs images"),
        (lambda: VAEConfig(networks="convolutional").build(IMAGES), "4 x 4 is not divisible by 16"),
        (
            lambda: VAE(gaussian_encoder(), BernoulliDecoder(2, 5), VAEConfig(), IMAGES),
            "the encoder gives 3, the decoder takes 2",
        ),
        (lambda: small_vae().encode(image_rows(5), 0), "encode: expected whole numbers from 1 .*samples=0"),
        (lambda: small_vae().sample(0), "sample: expected whole numbers from 1 .*n=0"),
    ],
)
def test_invalid_arguments_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
