"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from dynvision_snn.errors import OutputError
from dynvision_snn.report import check_free, write_text, writing_file, writing_folder


def _tree(folder):
    """Every file below a folder with its text, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_file_appears_whole_with_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b.json", "{µ}")
    assert _tree(tmp_path) == {"a/b.json": "{µ}"}


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("before", [{}, {"x.txt": "old"}])
def test_an_error_on_the_way_leaves_everything_as_it_was(tmp_path, before):
    for name, text in before.items():
        (tmp_path / name).write_text(text)

    def fail_halfway(place, name):
        with place as hidden:
            (hidden / name).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway(writing_file(tmp_path / "x.txt", force=True), "")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(writing_folder(tmp_path / "out"), "half")
    assert _tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == set(before)


def test_what_exists_is_overwritten_only_by_force(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        write_text(tmp_path / "x.txt", "new")
    assert _tree(tmp_path) == {"x.txt": "old"}
    write_text(tmp_path / "x.txt", "new", force=True)
    assert _tree(tmp_path) == {"x.txt": "new"}


def test_a_folder_replaces_its_own_files_by_force_and_deletes_none(tmp_path):
    out = tmp_path / "out"
    for text, force in [("first", False), ("second", True)]:
        with writing_folder(out, force=force) as hidden:
            (hidden / "figures").mkdir()
            (hidden / "figures" / "a.svg").write_text(text)
            assert out.exists() == force
        (out / "theirs.txt").write_text("keep")
    assert _tree(tmp_path) == {"out/figures/a.svg": "second", "out/theirs.txt": "keep"}
    with pytest.raises(OutputError, match="exists already"), writing_folder(out):
        pytest.fail("the block must not run")


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    with writing_folder(tmp_path / "out") as hidden:
        (hidden / "a").write_text("1")
    assert _tree(tmp_path) == {"out/a": "1"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_no_place_for_a_file_nor_a_file_for_a_folder(tmp_path, force):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path / "folder", "", force=force)
    with pytest.raises(OutputError), writing_folder(tmp_path / "file", force=force):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="a file, not a folder"):
        check_free(tmp_path / "file" / "below", force=force)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_place_without_permission_is_refused_beforehand(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        check_free(tmp_path / "x")


def test_a_system_that_refuses_the_name_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="too long"):
        write_text(tmp_path / ("x" * 300), "")
