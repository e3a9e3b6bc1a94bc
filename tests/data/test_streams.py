"""Tables that stay on disk: every row once an epoch, the same order for the same seed, bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit
from arcsm.data import RowStream, blocks_of, streams
from stored_rows import counted_rows, write_rows


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 64 * 3 * 8)


@pytest.mark.parametrize(("suffix", "window"), [(".npy", 1), (".parquet", 200 * 3 * 4), (".npy", 1 << 30)])
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


def small_model(features: int = 3) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoregressiveModel(MADE(features, 4, (16,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def test_streams_standardise_as_tables_in_memory(tmp_path: Path) -> None:
    stream = RowStream(blocks_of(write_rows(tmp_path / "t.npy", counted_rows())))
    config = TrainConfig(steps=1, device="cpu", standardise="global")
    a, b = small_model(), small_model()
    fit(a, stream, config=config)
    fit(b, stream.epoch(0).rows(slice(0, len(stream))), config=config)
    assert torch.allclose(a.shift, b.shift, rtol=1e-6)
    assert torch.allclose(a.scale, b.scale, rtol=1e-6)


def test_values_that_are_not_finite_numbers_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    values = counted_rows()
    values[456, 1] = np.inf
    with pytest.raises(ValueError, match=r"t\.npy: expected finite numbers.* row 457, column 'x1'"):
        RowStream(blocks_of(write_rows(tmp_path / "t.npy", values)))


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


LIMITED = """
import resource, sys
from pathlib import Path
from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from arcsm.data import RowStream, blocks_of, read_table
path, config = Path(sys.argv[1]), TrainConfig(steps=110, batch_size=8192, device="cpu")
resource.setrlimit(resource.RLIMIT_DATA, (1200 << 20, 1200 << 20))
rows = RowStream(blocks_of(path)) if sys.argv[2] == "streamed" else read_table(path).values
fit(AutoregressiveModel(MADE(40, 4, (16,)), GaussianHead(4)), rows, config=config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_larger_than_memory_is_trained_on(suffix: str, tmp_path: Path) -> None:
    """A limit by ulimit -d, which loading the file into memory breaks."""
    path = tmp_path / f"large{suffix}"
    values = np.random.default_rng(0).normal(size=(8_500_000, 40)).astype(np.float32)  # 1.27 GiB
    if suffix == ".npy":
        np.save(path, values)
    else:
        pd.DataFrame(values).rename(columns=str).to_parquet(path, row_group_size=200_000)
    del values
    assert path.stat().st_size > 1200 << 20
    # the pool that Arrow comes with reserves memory that it does not use
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    streamed, in_memory = (
        subprocess.run([sys.executable, "-c", LIMITED, str(path), how], env=env, capture_output=True, text=True)
        for how in ("streamed", "in memory")
    )
    assert streamed.returncode == 0, streamed.stderr[-2000:]
    assert in_memory.returncode != 0


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
