"""Any file is a table or an image, or raises a one-line error."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcsm.data import read_frame, read_images, read_table

cells = st.sampled_from(["1", "-2.5", "nan", "", "x", "1e400", '"', "'", "\\N", "é", "1,2", "\x00", "0x1", "True", " "])


texts = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=6).map("\n".join)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
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
