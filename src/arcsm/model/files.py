"""Models as files: safetensors with the configuration in the header, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from torch import Tensor

from arcsm import registry, serialization
from arcsm._runtime.devices import resolve_device
from arcsm.contexts.condition_nets import net_config
from arcsm.data.metadata import check_metadata
from arcsm.heads import Head
from arcsm.model.card import TAGS, model_card
from arcsm.model.standardisation import Standardised

#: What files of other kinds hold, and what reads them.
_OTHER_KINDS = {
    "estimator": ("a fitted estimator", "the method load of its class reads it"),
    "table": (
        "a fitted table",
        "the option --model of arcsm detect, impute, synthesize and score reads it, and arcsm serve",
    ),
}


class ModelFiles(Standardised, ModelHubMixin):
    """A model that can be written to files and read from them.

    Attributes:
        head: The head of the model.
        metadata: What travels with the weights, ready for JSON.
    """

    head: Head
    metadata: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """Return the JSON-ready configuration from which :meth:`from_config` builds the model."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a model from its configuration, with fresh weights."""
        raise NotImplementedError

    def check_saveable(self) -> None:
        """Check that a saved file could be loaded again.

        Raises:
            ValueError: If a part is not registered or does not store its arguments, something cannot become JSON, or
                the configuration rebuilds other tensors.
        """
        registry.check_registered("context", self.context)
        registry.check_registered("head", self.head)
        if (net := self.context.condition_net) is not None:
            net_config(net)  # raises unless it is registered
        check_metadata(self.metadata, self.features)  # an entry may have changed
        config, tensors = self.config(), self.state_dict()
        for name, entries in config.items():
            serialization.check_json(entries or {}, name)
        serialization.check_types(tensors)
        serialization.check_rebuilds(type(self).from_config, config, tensors)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the model; see :func:`arcsm.save`."""
        self.check_saveable()
        serialization.save_module(self, self.config(), path)

    @classmethod
    def read(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Read a model; see :func:`arcsm.load`."""
        tensors, config = serialization.read_module(path)
        file = serialization.weights_path(path)
        if "kind" in config:
            kind = config["kind"]
            what, hint = _OTHER_KINDS.get(str(kind), (f"a {kind!s:.60}", "arcsm report and arcsm sample accept it"))
            raise ValueError(f"{file}: holds {what}, not an autoregressive model; {hint}")
        return cls.from_tensors(config, tensors, file).to(resolve_device(device)).eval()

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> Self:
        """Build a model from its configuration and its weights, after checks; ``file`` begins the errors."""

        def build() -> ModelFiles:
            try:
                return cls.from_config(config)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error

        dtype = tensors["shift"].dtype if "shift" in tensors else torch.get_default_dtype()
        if dtype not in serialization.TYPES:
            raise ValueError(f"{file}: expected weights that are real numbers, got {dtype}")
        serialization.check_fits(build, tensors, file)
        model = cast(Self, build().to(dtype))
        serialization.adopt_types(model, tensors)
        serialization.load_state(model, tensors, file)
        model.set_standardisation(model.shift.clone(), model.scale.clone())  # checks the loaded values
        model.set_condition_standardisation(model.condition_shift.clone(), model.condition_scale.clone())
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(save_directory)

    def generate_model_card(self, *_: Any, **entries: Any) -> ModelCard:
        """Return the card of the model, with further entries, such as ``license="mit"``, in its header.

        ``save_pretrained`` writes it unless somebody has written one; ``push_to_hub`` always does.
        """
        known = self._hub_mixin_info.model_card_data.to_dict()
        tags = list(dict.fromkeys([*(known.pop("tags", None) or []), *(entries.pop("tags", None) or []), *TAGS]))
        data = ModelCardData(**{**known, "library_name": "arcsm", **entries, "tags": tags})
        return ModelCard(model_card(self, data.to_yaml()))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
    ) -> Self:
        """Read a model from a folder, or from a repository of the Hugging Face Hub.

        The configuration is that in the header of the weights, whatever ``config.json`` holds.

        Arguments:
            pretrained_model_name_or_path: A folder that :func:`arcsm.save` or ``save_pretrained`` wrote, or a
                repository.
            force_download, token, cache_dir, local_files_only, revision: As in ``huggingface_hub.hf_hub_download``.
            map_location: Device of the model.

        Raises:
            ValueError: As :func:`arcsm.load`.
        """
        model_id = os.fspath(pretrained_model_name_or_path)
        if Path(model_id).is_dir():
            return cls.read(model_id, device=map_location)
        file = hf_hub_download(
            model_id, serialization.WEIGHTS_NAME, force_download=force_download, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only, revision=revision,
        )  # fmt: skip
        return cls.read(file, device=map_location)
