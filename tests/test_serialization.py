"""Model files: a saved model is loaded unchanged; any other file is a one-line ValueError and never runs code."""

import json
import math
import os
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import arcsm
from arcsm import AutoregressiveModel, NoiseLadder, serialization
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import write_text

MakeModel = Callable[..., AutoregressiveModel]


@pytest.fixture
def model(make_model: MakeModel, ladder: NoiseLadder) -> AutoregressiveModel:
    metadata = {"columns": ["height", "weight"], "note": "naïve ✓"}
    return make_model(
        noise=ladder, dtype=torch.float32, order=(1, 0), shift=[1.0, -2.0], scale=[2.0, 0.5], metadata=metadata
    )


@pytest.fixture
def file(model: AutoregressiveModel, tmp_path: Path) -> Path:
    path = tmp_path / "saved.safetensors"
    arcsm.save(model, path)
    return path


def rewrite(file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    """Change the tensors and the header of a file in place; a returned text replaces the header."""
    with safetensors.safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["arcsm"])
    tensors = safetensors.torch.load_file(file)
    text = change(tensors, header)
    safetensors.torch.save_file(tensors, file, {"arcsm": text if isinstance(text, str) else json.dumps(header)})


def assert_rejected(path: Path, match: str = ": ") -> None:
    with pytest.raises(ValueError, match=match) as error:
        arcsm.load(path)
    assert "\n" not in str(error.value)


def outcome(path: Path) -> str:
    """Return the error of loading a file, or an empty text."""
    try:
        arcsm.load(path)
    except ValueError as error:
        return str(error)
    return ""


def points() -> Tensor:
    return torch.tensor([[0.0, 0.0], [1.5, -2.5], [-4.0, 3.0]])


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "run", "deep/er/run", "with space.v2"])
@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_a_saved_model_is_loaded_unchanged(
    make_model: MakeModel, ladder: NoiseLadder, tmp_path: Path, kind: str, name: str
) -> None:
    model = make_model(kind, noise=ladder, dtype=torch.float32, shift=1.0, scale=[2.0, 0.5])
    model.train()
    arcsm.save(model, tmp_path / name)
    loaded = arcsm.load(str(tmp_path / name))
    assert torch.equal(loaded.log_prob(points()), model.log_prob(points()))
    assert loaded.config() == model.config()
    assert not loaded.training
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (m.sample(3, generator=g) for m, g in zip((model, loaded), generators, strict=True))
    assert torch.equal(first, second)


def test_ladders_orders_classes_and_metadata_are_loaded(make_model: MakeModel, tmp_path: Path) -> None:
    noise = NoiseLadder(0.7, 0.1, 4, continuous=False)
    metadata = {"columns": ["é", "b"], "image_shape": [1, 2], "nested": {"a": None, "b": [1.5, True]}}
    for arguments in ({"noise": noise, "classes": 3}, {"condition_features": 2}, {"order": (1, 0)}):
        model = make_model("score", metadata=metadata, **arguments)
        arcsm.save(model, tmp_path / "run")
        loaded = arcsm.load(tmp_path / "run")
        assert loaded.noise == model.noise
        assert loaded.context.order == model.context.order
        assert loaded.metadata == metadata


def test_double_precision_is_loaded(make_model: MakeModel, ladder: NoiseLadder, tmp_path: Path) -> None:
    model = make_model(noise=ladder)
    arcsm.save(model, tmp_path)
    assert torch.equal(arcsm.load(tmp_path).log_prob(points().double()), model.log_prob(points().double()))


def test_a_folder_holds_weights_and_a_readable_config(model: AutoregressiveModel, tmp_path: Path) -> None:
    arcsm.save(model, tmp_path / "run")
    assert leftovers(tmp_path / "run") == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config == {"schema_version": serialization.SCHEMA_VERSION, **model.config()}
    (tmp_path / "run" / "config.json").unlink()
    assert torch.equal(arcsm.load(tmp_path / "run").log_prob(points()), model.log_prob(points()))


def test_saving_replaces_an_older_model(make_model: MakeModel, ladder: NoiseLadder, tmp_path: Path) -> None:
    for kind in ("score", "mixture", "gaussian"):
        model = make_model(kind, noise=ladder, dtype=torch.float32)
        arcsm.save(model, tmp_path)
        assert torch.equal(arcsm.load(tmp_path).log_prob(points()), model.log_prob(points()))
    assert leftovers(tmp_path) == ["config.json", "model.safetensors"]


def test_files_are_plain_safetensors(model: AutoregressiveModel, file: Path) -> None:
    assert not zipfile.is_zipfile(file)  # what torch.save writes
    assert safetensors.torch.load_file(file).keys() == model.state_dict().keys()


def test_files_have_default_permissions(file: Path) -> None:
    ordinary = file.with_name("ordinary")
    ordinary.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_hub_methods_round_trip_on_disk(model: AutoregressiveModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "hub")
    loaded = AutoregressiveModel.from_pretrained(str(tmp_path / "hub"))
    assert isinstance(loaded, AutoregressiveModel)
    assert torch.equal(loaded.log_prob(points()), model.log_prob(points()))
    assert loaded.config() == model.config()
    assert torch.equal(arcsm.load(tmp_path / "hub").log_prob(points()), model.log_prob(points()))


def test_devices_are_chosen_by_name(file: Path) -> None:
    for device in ("cpu", "auto", torch.device("cpu")):
        assert arcsm.load(file, device=device).shift.device == resolve_device(device)
    with pytest.raises(ValueError, match="device: nowhere is not available") as error:
        arcsm.load(file, device="nowhere")
    assert "\n" not in str(error.value)


# Incomplete files ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "nothing.safetensors", "no such file")
    assert_rejected(tmp_path, "no such file")
    assert_rejected(tmp_path / "nowhere" / "run", "no such file")


def test_a_truncated_file_is_rejected(file: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    cuts = {
        0,
        1,
        7,
        8,
        9,
        header - 1,
        header,
        header + 1,
        len(content) - 1,
        *range(0, len(content), len(content) // 40),
    }
    for length in sorted(cuts):
        file.write_bytes(content[:length])
        assert_rejected(file, "not a complete safetensors file")
    file.write_bytes(content + b"\0")
    assert_rejected(file, "not a complete safetensors file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_random_bytes_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    assert_rejected(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_header_byte_is_rejected_or_harmless(file: Path, position: int, byte: int) -> None:
    content = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    damaged = file.with_name("damaged.safetensors")
    content[position % end] = byte
    damaged.write_bytes(content)
    assert "\n" not in outcome(damaged)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_header_bits_are_rejected_or_harmless(seed: int, file: Path) -> None:
    content, generator = file.read_bytes(), random.Random(seed)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(20):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(end)] ^= 1 << generator.randrange(8)
        file.write_bytes(bytes(damaged))
        error = outcome(file)
        if error:
            assert str(file) in error
            assert "\n" not in error
        else:  # the name or number still makes sense
            model = arcsm.load(file)
            assert bool(model.log_prob(torch.zeros(1, model.features)).isfinite().all())


class Explosive:
    """An object that leaves a trace when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_pickles_are_rejected_without_unpickling(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Explosive(trace)))
    assert_rejected(path, "not a complete safetensors file")
    torch.save({"weights": Explosive(trace)}, path)
    assert_rejected(path, "not a complete safetensors file")
    assert not trace.exists()


def test_unpickling_the_explosive_leaves_a_trace(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Explosive(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def test_foreign_safetensors_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"other": "{}"}):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        assert_rejected(path, "not one that arcsm wrote")


# Hostile headers -------------------------------------------------------------------------------------------------


def test_a_later_schema_requires_an_upgrade(file: Path) -> None:
    rewrite(file, lambda _, header: header.update(schema_version=serialization.SCHEMA_VERSION + 1))
    assert_rejected(file, "later arcsm.*upgrade")


HOSTILE_TEXTS = {
    "empty": "",
    "not json": "{",
    "nested": "[" * 100_000,
    "nested object": '{"a":' * 50_000,
    "list": "[1, 2]",
    "number": "7",
    "null": "null",
    "string": '"os.system"',
    "no version": "{}",
    "version of text": '{"schema_version": "1"}',
    "version of null": '{"schema_version": null}',
    "fractional version": '{"schema_version": 1.5}',
    "huge number": '{"schema_version": ' + "9" * 5000 + "}",
    "nothing else": '{"schema_version": 1}',
    "python": "__import__('os').mkdir('trace')",
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_headers_are_rejected(file: Path, name: str) -> None:
    rewrite(file, lambda *_: HOSTILE_TEXTS[name])
    assert_rejected(file)


HOSTILE_CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown head": lambda header: header["head"].update(kind="os.system"),
    "unknown context": lambda header: header["context"].update(kind="builtins.eval"),
    "kind of null": lambda header: header["head"].update(kind=None),
    "kind of a list": lambda header: header["head"].update(kind=["ScoreHead"]),
    "kind of an object": lambda header: header["head"].update(kind={"ScoreHead": 1}),
    "kind of a dunder": lambda header: header["context"].update(kind="__class__"),
    "head in place of the context": lambda header: header["context"].update(kind="ScoreHead"),
    "no kind": lambda header: header["head"].pop("kind"),
    "no head": lambda header: header.pop("head"),
    "no context": lambda header: header.pop("context"),
    "context of a list": lambda header: header.update(context=[1, 2]),
    "unknown argument": lambda header: header["head"].update(hook="os.system"),
    "self as argument": lambda header: header["head"].update(self=1),
    "features of text": lambda header: header["context"].update(features="two"),
    "features of truth": lambda header: header["context"].update(features=True),
    "features of null": lambda header: header["context"].update(features=None),
    "negative features": lambda header: header["context"].update(features=-2),
    "fractional features": lambda header: header["context"].update(features=1.5),
    "hidden layers of an object": lambda header: header["head"].update(hidden_features={"a": 1}),
    "order of another length": lambda header: header["context"].update(order=[0, 1, 2]),
    "noise of text": lambda header: header.update(noise="loud"),
    "noise of a list": lambda header: header.update(noise=[1.0, 0.1]),
    "unknown noise": lambda header: header["noise"].update(colour="pink"),
    "noise upside down": lambda header: header["noise"].update(sigma_max=0.01),
    "noise of text numbers": lambda header: header["noise"].update(sigma_max="1"),
    "metadata of a number": lambda header: header.update(metadata=5),
    "sizes that do not fit": lambda header: header["head"].update(context_features=4),
    "other layers than the weights": lambda header: header["head"].update(hidden_features=[16]),
    "other widths than the weights": lambda header: header["head"].update(hidden_features=[16, 17]),
}
UNREASONABLE_CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "metadata of text": lambda header: header.update(metadata="abc"),
    "head of text": lambda header: header.update(head="ScoreHead"),
    "contexts larger than any memory": lambda header: [
        header[part].update(context_features=10**14) for part in ("context", "head")
    ],
    "hidden layer larger than any memory": lambda header: header["head"].update(hidden_features=[10**14, 10**14]),
    "fractional levels": lambda header: header["noise"].update(levels=2.5),
}


@pytest.mark.parametrize("name", HOSTILE_CONFIGS)
def test_hostile_configurations_are_rejected(file: Path, name: str) -> None:
    rewrite(file, lambda _, header: HOSTILE_CONFIGS[name](header))
    assert_rejected(file)


@pytest.mark.parametrize("name", UNREASONABLE_CONFIGS)
def test_unreasonable_configurations_are_rejected(file: Path, name: str) -> None:
    rewrite(file, lambda _, header: UNREASONABLE_CONFIGS[name](header))
    assert_rejected(file)


# Hostile weights -------------------------------------------------------------------------------------------------

NAME = "head.output.weight"
BAD_WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop(NAME), f"{NAME} is missing"),
    "extra": (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is not part"),
    "shape": (lambda tensors: tensors.update({NAME: torch.zeros(2, 2)}), rf"{NAME}: expected shape"),
    "empty": (lambda tensors: tensors.update({NAME: torch.zeros(0)}), rf"{NAME}: expected shape"),
    "transposed": (lambda tensors: tensors.update({NAME: torch.zeros(16, 1)}), rf"{NAME}: expected shape"),
    "integers": (lambda tensors: tensors.update({NAME: torch.zeros(1, 16, dtype=torch.int32)}), rf"{NAME}: .*int32"),
    "nan": (lambda tensors: tensors[NAME].fill_(torch.nan), f"{NAME} holds NaN"),
    "infinity": (lambda tensors: tensors[NAME][0, 3:4].fill_(torch.inf), f"{NAME} holds NaN or infinity"),
    "scale of NaN": (lambda tensors: tensors["scale"].fill_(torch.nan), "scale holds NaN"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_tensors_that_do_not_fit_are_named(file: Path, name: str) -> None:
    change, message = BAD_WEIGHTS[name]
    rewrite(file, lambda tensors, _: change(tensors))
    assert_rejected(file, message)


def test_control_characters_in_names_are_escaped(model: AutoregressiveModel, tmp_path: Path) -> None:
    weights = {**model.state_dict(), "context.lay\ners\x1b[2J": torch.zeros(1)}
    serialization.write_tensors(tmp_path / "m.safetensors", weights, model.config())
    with pytest.raises(ValueError, match="is not part of this model") as refused:
        arcsm.load(tmp_path / "m.safetensors")
    assert str(refused.value).isprintable()
    config = model.config()
    config["head"]["hidden\rfeatures"] = 3
    serialization.write_tensors(tmp_path / "m.safetensors", model.state_dict(), config)
    with pytest.raises(ValueError, match="model configuration") as refused:
        arcsm.load(tmp_path / "m.safetensors")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_rejected(file: Path, scale: float) -> None:
    rewrite(file, lambda tensors, _: tensors["scale"].fill_(scale))
    assert_rejected(file, "scale")


# The readable copy of the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"schema_version": 1}',
        '{"schema_version": 99}',
        b"\xff\xfe{".decode("latin1"),
    ],
)
def test_a_different_config_beside_the_weights_is_rejected(
    model: AutoregressiveModel, tmp_path: Path, text: str
) -> None:
    arcsm.save(model, tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert_rejected(tmp_path, r"config\.json")


def test_an_edited_config_is_rejected_with_a_remedy(model: AutoregressiveModel, tmp_path: Path) -> None:
    arcsm.save(model, tmp_path)
    beside = tmp_path / "config.json"
    config = json.loads(beside.read_text(encoding="utf-8"))
    config["noise"]["sigma_min"] = 0.01
    beside.write_text(json.dumps(config), encoding="utf-8")
    assert_rejected(tmp_path, "delete it to use the copy inside")
    beside.unlink()
    arcsm.load(tmp_path)


def test_nan_in_metadata_is_loaded_from_a_folder(make_model: MakeModel, tmp_path: Path) -> None:
    arcsm.save(make_model(metadata={"threshold": float("nan")}), tmp_path)
    assert math.isnan(arcsm.load(tmp_path).metadata["threshold"])


# Writing --------------------------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file_and_no_partial_file(
    make_model: MakeModel, model: AutoregressiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arcsm.save(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(tensors: Any, path: Any, metadata: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(OSError, match="the disk is full"):
            arcsm.save(make_model(seed=3, dtype=torch.float32), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert torch.equal(arcsm.load(tmp_path).log_prob(points()), model.log_prob(points()))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_replacement_keeps_the_old_file(
    file: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = file.read_bytes()

    def fails(*_: Any) -> None:
        raise error("interrupted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(error):
            arcsm.save(make_model(seed=3), file)
    assert file.read_bytes() == before
    assert leftovers(file.parent) == [file.name]


def test_metadata_that_is_not_json_fails_before_writing(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        arcsm.save(make_model(metadata={"object": object()}), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run").exists() or leftovers(tmp_path / "run") == []


def test_text_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "older ✓")
    assert path.read_text(encoding="utf-8") == "older ✓"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "older ✓"
    assert leftovers(path.parent) == ["file.txt"]


def test_tensors_of_any_layout_are_read_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "t": base.T,
        "s": base[:, ::2],
        "e": torch.zeros(0, 3),
        "n": torch.tensor(3),
        "p": torch.nn.Parameter(base),
    }
    serialization.write_tensors(tmp_path / "file.safetensors", tensors, {"step": 7})
    got, header = serialization.read_tensors(tmp_path / "file.safetensors")
    assert header == {"schema_version": serialization.SCHEMA_VERSION, "step": 7}
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensors[name]) and got[name].dtype == tensors[name].dtype for name in tensors)
