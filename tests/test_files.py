"""A file is whole or as it was before."""

import pytest

from nc_callbacks.files import replacing, write_whole


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_text_takes_the_place_of_another(tmp_path):
    write_whole(tmp_path / "a.json", "old")
    write_whole(tmp_path / "a.json", "μ₁")
    assert (tmp_path / "a.json").read_bytes() == "μ₁".encode()
    assert names(tmp_path) == ["a.json"]


def test_reader_finds_the_old_one_until_all_is_written(tmp_path):
    write_whole(tmp_path / "a", "old")
    with replacing(tmp_path / "a", "wb") as file:
        file.write(b"n")
        file.flush()
        assert (tmp_path / "a").read_text() == "old"
        file.write(b"ew")
    assert (tmp_path / "a").read_text() == "new"


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a", "old")

    def fail():
        with replacing(tmp_path / "a") as file:
            file.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        write_whole(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_mode_is_that_of_any_new_file(tmp_path):
    write_whole(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
