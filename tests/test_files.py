"""Files are whole or absent, whoever looks and whatever goes wrong."""

import pytest

from simpool_lite.files import write_atomically


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for content, before in (("one", None), ("two", "one")):
        with write_atomically(path) as temporary:
            temporary.write_text(content[:1])
            assert (path.read_text() if path.exists() else None) == before
            temporary.write_text(content)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_who_has_the_old_file_open_reads_it_to_its_end(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with (tmp_path / "file.txt").open() as opened:
        with write_atomically(tmp_path / "file.txt") as temporary:
            temporary.write_text("newer")
        assert (opened.read(), (tmp_path / "file.txt").read_text()) == ("old", "newer")


@pytest.mark.parametrize("before", [None, "old"])
def test_a_write_that_fails_changes_nothing(tmp_path, before):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if before is None else [before])
