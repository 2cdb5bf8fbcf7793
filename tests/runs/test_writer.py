"""Writing to a disk that takes a part of what it is given."""

import resource

import pytest

from rlloss.runs.writer import _write


def test_a_write_that_was_cut_short_is_an_error(tmp_path):
    """The limit of a file's size is met in the middle of a write, which then returns how much of it there was."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "rows.csv").open("ab", buffering=0) as file:
        _write(file, b"x" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                _write(file, b"y" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        _write(file, b"z" * 1000)
    assert (tmp_path / "rows.csv").read_bytes() == b"x" * 1000 + b"y" * 500 + b"z" * 1000
