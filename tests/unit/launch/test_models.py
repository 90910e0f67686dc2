"""Where prepared models lie, and what is said where that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.models import KNOWN, ModelError, cache, prepare

NAME = "smollm2-135m-instruct"


def test_a_user_without_a_home_is_told_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AZR_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(ModelError, match="AZR_CACHE"):
        cache()
    monkeypatch.setenv("AZR_CACHE", str(tmp_path))
    assert cache() == tmp_path / "models"


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_is_named(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AZR_CACHE", str(tmp_path / place))
    with pytest.raises(ModelError, match=f"{place}.*Set AZR_CACHE"):
        prepare(NAME)


def test_a_model_that_cannot_be_built_whole_is_not_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("AZR_CACHE", str(tmp_path))
    monkeypatch.setitem(KNOWN, NAME, full)
    with pytest.raises(ModelError, match="No space left on device"):
        prepare(NAME)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["no/such/folder", "~nobody-of-this-name/model", "no/such/dir/smollm2-135m-instruct"])
def test_a_folder_that_is_typed_is_that_folder_or_an_error(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a known model"):
        prepare(name)
