"""The page about the outliers of a table."""

from __future__ import annotations

from pathlib import Path

from arcsm.estimators.detection import DetectionResult
from arcsm.reports.detection import write_detection_report
from small_tables import QUICK, detector_and_outliers


def test_the_page_shows_expected_values_and_escapes_its_title(tmp_path: Path) -> None:
    detector, rows = detector_and_outliers(**QUICK)
    write_detection_report(
        detector, DetectionResult.from_parts(detector, [rows]), tmp_path / "page.html", "rows <scored>"
    )
    page = (tmp_path / "page.html").read_text()
    assert "rows &lt;scored&gt;" in page
    assert "income: expected" in page
    assert page.count("data:image/png;base64,") >= 4
    assert "visits: 60" in page
    assert "No fitted row has this value." in page  # of the city
    assert "kind: other" in page
    assert "http" not in page.replace("data:image", "")
