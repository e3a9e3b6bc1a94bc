"""Any file is a table, an image or a configuration, or raises a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcsm.data import read_frame, read_images, read_table
from arcsm.training.run_config import load_config, presets

many = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


cells = st.sampled_from(["1", "-2.5", "nan", "", "x", "1e400", '"', "'", "\\N", "é", "1,2", "\x00", "0x1", "True", " "])


texts = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=6).map("\n".join)


@many
@given(st.one_of(st.binary(max_size=200), texts.map(str.encode)))
def test_any_bytes_are_a_table_or_a_one_line_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    for suffix in (".csv", ".csv.gz", ".npy", ".npz", ".parquet"):
        path = path.with_name(f"a{suffix}")
        path.write_bytes(content)
        for read in (read_table, read_frame):
            try:
                found = read(path)
            except ValueError as error:
                assert str(path) in str(error), error  # noqa: PT017 (some bytes are tables)
                assert "\n" not in str(error).strip()  # noqa: PT017
            else:
                assert len(found) > 0
    path = path.with_name("a.png")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png"):
        read_images(path.parent, skip_bad=False)


trees = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths_in(tree: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all settings in a tree."""
    if not isinstance(tree, dict):
        return [before]
    return [before, *(place for key, inner in tree.items() for place in paths_in(inner, (*before, key)))]


@many
@given(st.data())
def test_any_setting_is_valid_or_a_one_line_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([name for name in presets() if not name.startswith("vae")]))
    tree = yaml.safe_load(presets()[name].read_text())
    place = data.draw(st.sampled_from(paths_in(tree)))
    wrong = data.draw(trees)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = wrong
    else:
        tree = wrong
    path: Path = tmp_path_factory.mktemp("fuzz") / "a.yaml"
    path.write_text(yaml.safe_dump(tree))
    try:
        load_config(str(path))
    except ValueError as error:
        assert str(path) in str(error), error  # noqa: PT017 (some settings are right)
        assert "\n" not in str(error).strip()  # noqa: PT017
