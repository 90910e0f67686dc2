"""Files that are written in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.whole_file import write_text


def test_a_file_that_cannot_take_its_name_leaves_no_part_behind(tmp_path: Path) -> None:
    (tmp_path / "page.md").mkdir()
    with pytest.raises(OSError, match="page.md"):
        write_text(tmp_path / "page.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    write_text(tmp_path / "other.md", "text")
    assert (tmp_path / "other.md").read_text() == "text"
