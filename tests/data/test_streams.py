"""Tables that stay on disk: every row once an epoch, the same order for the same seed, bounded memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit, load
from arcsm.cli import application
from arcsm.data import RowStream, blocks_of, streams
from arcsm.training import density
from arcsm.training.checkpoint import write_checkpoint
from stored_rows import counted_rows, write_rows


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 64 * 3 * 8)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("window", [1, 200 * 3 * 4, 1 << 30])
def test_an_epoch_holds_every_row_once(
    suffix: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    values = counted_rows()
    stream = RowStream(blocks_of(write_rows(tmp_path / f"t{suffix}", values)), seed=3, window=window)
    assert (len(stream.valid), len(stream.test)) == (100, 100)
    assert stream.shape == (800, 3)
    order = stream.epoch(7)
    rows = torch.cat([order.rows(slice(first, min(first + 33, 800))) for first in range(0, 800, 33)])
    every = torch.cat([rows, stream.valid, stream.test])
    assert torch.equal(every[every[:, 0].argsort()], torch.from_numpy(values).float())
    assert torch.equal(stream.epoch(7).rows(slice(33, 66)), rows[33:66])  # from the middle, as a resumed run
    other = stream.epoch(8).rows(slice(0, 800))
    assert not torch.equal(other, rows)
    assert torch.equal(other[other[:, 0].argsort()], rows[rows[:, 0].argsort()])


def test_a_window_of_many_blocks_shuffles_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows(20_000))), window=4_000 * 3 * 4)
    place = stream.epoch(0).rows(slice(0, 2_000))[:, 0] / 20_000
    assert abs(float(place.mean()) - 0.5) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([place[:-1], place[1:]]))[0, 1])) < 0.1


def test_moments_and_held_out_rows_cover_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows())), seed=3)
    rows = stream.epoch(0).rows(slice(0, len(stream))).double()
    assert torch.allclose(stream.mean, rows.mean(0), rtol=1e-9)
    assert torch.allclose(stream.deviation, rows.std(0, correction=0), rtol=1e-9)
    assert abs(float(stream.valid[:, 0].mean()) - 500) < 100  # from all of the file
    assert stream.first(5).shape == (5, 3)


def test_held_out_rows_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MAX_HELD_OUT", 30)
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.parquet", counted_rows())))
    assert (len(stream.valid), len(stream.test), len(stream)) == (30, 30, 940)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.49])
def test_blocks_of_one_row_are_split(share: float, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(counted_rows(60)).rename(columns=str).to_parquet(path, row_group_size=1)
    stream = RowStream(blocks_of(path), validation=share, test=share)
    assert len(stream.valid) == round(60 * share)
    assert len(stream) + len(stream.valid) + len(stream.test) == 60


def small_model(features: int = 3) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoregressiveModel(MADE(features, 4, (16,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


@pytest.mark.parametrize("standardise", ["columns", "global", "centre", "none"])
def test_streams_standardise_as_tables_in_memory(standardise: str, tmp_path: Path) -> None:
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows())))
    config = TrainConfig(steps=1, device="cpu", standardise=standardise)
    a, b = small_model(), small_model()
    fit(a, stream, config=config)
    fit(b, stream.epoch(0).rows(slice(0, len(stream))), config=config)
    assert torch.allclose(a.shift, b.shift, rtol=1e-6)
    assert torch.allclose(a.scale, b.scale, rtol=1e-6)


def test_a_streamed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr(streams, "WINDOW_BYTES", 200 * 3 * 4)
    path = write_rows(tmp_path / "t.npy", counted_rows(500)[:, 1:])
    (tmp_path / "run.yaml").write_text(
        textwrap.dedent(f"""
        name: rows
        data: {{kind: table, path: {path}, stream: true}}
        model:
          context: {{kind: MADE, hidden_features: [16], context_features: 4}}
          head: {{kind: ScoreHead, hidden_features: [8]}}
          noise: {{sigma_max: 1.0, sigma_min: 0.1, levels: 4}}
        train: {{steps: 31, batch_size: 24, validate_every: 10, device: cpu}}
        """)
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert application.run(["train", str(tmp_path / "run.yaml"), "--out", str(whole)]) == 0
    command = ["train", str(tmp_path / "run.yaml"), "--out", str(cut)]
    with monkeypatch.context() as patch:
        advance = density.DensityTask.advance

        def stopped(trainer: density.DensityTask) -> float:
            if trainer.step == 13:
                write_checkpoint(trainer, cut)
            if trainer.step == 20:
                raise KeyboardInterrupt
            return advance(trainer)

        patch.setattr(density.DensityTask, "advance", stopped)
        assert application.run(command) == 130
    assert application.run([*command, "--resume"]) == 0
    a, b = load(whole).state_dict(), load(cut).state_dict()
    assert all(torch.equal(weights, b[name]) for name, weights in a.items())
    assert application.run(["report", str(whole), "--samples", "4"]) == 0


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_values_that_are_not_finite_numbers_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    values = counted_rows()
    values[456, 1] = np.inf
    with pytest.raises(ValueError, match=r"t\.npy: expected finite numbers.* row 457, column 'x1'"):
        RowStream(blocks_of(write_rows(tmp_path / "t.npy", values)))
    frame = pd.DataFrame({"a": np.arange(100.0), "b": ["1"] * 100})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=30)
    with pytest.raises(ValueError, match="row 1, column 'b': expected a number, got '1'"):
        RowStream(blocks_of(tmp_path / "t.parquet"))


def test_files_that_cannot_be_streamed_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"streaming supports only \.npy and \.parquet files; convert"):
        blocks_of(tmp_path / "t.csv")
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"expected an array of shape \(n, D\), got \(2, 3, 4\)"):
        blocks_of(tmp_path / "cube.npy")
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(ValueError, match="never loaded"):
        blocks_of(tmp_path / "objects.npy")
    pd.DataFrame({"a": np.zeros(0)}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="at least one row"):
        blocks_of(tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes(write_rows(tmp_path / "t.parquet", counted_rows()).read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        blocks_of(tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match="too few to hold out"):
        RowStream(blocks_of(write_rows(tmp_path / "few.npy", counted_rows(3))))


def test_a_changed_file_is_rejected(tmp_path: Path) -> None:
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows())))
    write_rows(tmp_path / "t.npy", counted_rows(900))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        stream.epoch(0).rows(slice(0, 800))


def test_fit_rejects_conditions_and_other_widths_for_streams(tmp_path: Path) -> None:
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows())))
    with pytest.raises(ValueError, match="streamed rows have no conditions"):
        fit(small_model(), stream, condition_train=torch.zeros(800))
    with pytest.raises(ValueError, match="expected rows of 2 columns, got 3"):
        fit(small_model(2), stream)


# Which tables are streamed ------------------------------------------------------------------------------------------


def test_an_index_that_pandas_saved_is_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame(counted_rows(), columns=list("abc"))
    frame[frame["b"] > 4.0].to_parquet(tmp_path / "t.parquet", row_group_size=100)
    stream = RowStream(blocks_of(tmp_path / "t.parquet"))
    assert stream.blocks.columns == ("a", "b", "c")
    assert float(stream.first(50)[:, 1].min()) > 4.0


def test_arrays_of_any_order_and_type_are_streamed(tmp_path: Path) -> None:
    values = counted_rows()
    for number, array in enumerate((np.asfortranarray(values), values.astype(">f8"), values.astype(">i4"))):
        path = tmp_path / f"{number}.npy"
        np.save(path, array)
        rows = RowStream(blocks_of(path)).first(800)
        own = torch.from_numpy(array.astype(np.float32))
        assert torch.equal(rows, own[rows[:, 0].long()])
    times = np.stack([1.7e9 + np.arange(1000), np.arange(1000)], 1)
    np.save(tmp_path / "times.npy", times)
    stream = RowStream(blocks_of(tmp_path / "times.npy"), dtype=torch.float64)
    assert len(stream.epoch(0).rows(slice(0, 800))[:, 0].unique()) == 800


def test_a_header_that_exceeds_the_file_is_rejected(tmp_path: Path) -> None:
    for shape in ((10**15, 1), (1, 10**15), (-5, 2)):
        with (tmp_path / "t.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with pytest.raises(ValueError, match=r"too short for an array|expected an array of shape \(n, D\)"):
            blocks_of(tmp_path / "t.npy")


LIMITED = """
import resource, sys
import numpy as np
import arcsm
from arcsm.cli import application
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(application.run(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_larger_than_memory_is_trained_on(suffix: str, tmp_path: Path) -> None:
    """A limit by ulimit -d, which loading the file into memory breaks."""
    path, rows = tmp_path / f"large{suffix}", 8_500_000
    values = np.random.default_rng(0).normal(size=(rows, 40)).astype(np.float32)  # 1.27 GiB
    if suffix == ".npy":
        np.save(path, values)
    else:
        pd.DataFrame(values).rename(columns=str).to_parquet(path, row_group_size=200_000)
    del values
    limit = 1200 << 20
    assert path.stat().st_size > limit
    (tmp_path / "run.yaml").write_text(
        textwrap.dedent(f"""
        name: rows
        data: {{kind: table, path: {path}}}
        model:
          context: {{kind: MADE, hidden_features: [16], context_features: 4}}
          head: {{kind: ScoreHead, hidden_features: [8]}}
          noise: {{sigma_max: 1.0, sigma_min: 0.1, levels: 4}}
        train: {{steps: 110, batch_size: 8192, validate_every: 110, device: cpu}}
        """)
    )
    command = [sys.executable, "-c", LIMITED, str(limit), "train", str(tmp_path / "run.yaml"), "--out"]
    # the pool that Arrow comes with reserves memory that it does not use
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    streamed = subprocess.run([*command, str(tmp_path / "a")], env=env, capture_output=True, text=True, check=False)
    assert streamed.returncode == 0, streamed.stderr[-2000:]
    in_memory = subprocess.run(
        [*command, str(tmp_path / "b"), "--set", "data.stream=false"], env=env, capture_output=True, check=False
    )
    assert in_memory.returncode != 0
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY  # of this process


def test_precision_is_checked_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    values = counted_rows()
    values[:, 0] = 1e6 + 300.0 * np.arange(1000)  # in a block of 64 rows, too close for single precision
    assert len(RowStream(blocks_of(write_rows(tmp_path / "t.parquet", values)))) == 800
    values[:, 0] = 1e9 + np.arange(1000)
    with pytest.raises(ValueError, match=r"column 'c0' varies by 2.9e\+02 around 1e\+09, too little for single"):
        RowStream(blocks_of(write_rows(tmp_path / "t.parquet", values)))


def test_a_damaged_row_group_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": [0.5, 1.5, 2.5, 3.5]}), path)
    content = path.read_bytes()
    at = content.rindex(b"\x16\x08")  # the number of rows of the group: 4, as a 64-bit integer of Thrift
    path.write_bytes(content[:at] + b"\x16\x2c" + content[at + 2 :])  # 22
    with pytest.raises(ValueError, match=r"t\.parquet: is damaged: 22 rows are announced, and 4 found"):
        blocks_of(path).read(0)
    offsets = pa.array([0, 3, 6], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"$\xff42.5"))
    parquet.write_table(pa.table({"a": text}), path)
    with pytest.raises(ValueError, match=r"t\.parquet: cannot be read, damaged or not of this format .*UTF8"):
        blocks_of(path).read(0)
