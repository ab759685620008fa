"""A piece of the study through ten kills at random moments: the same page. tests/kills.py kills all of the tour."""

import time

import kills

FLAGS = ("--only", "table1", "--seeds=1")


def test_a_study_that_is_killed_ten_times_has_the_same_page(tmp_path):
    begin = time.monotonic()
    assert kills.run_killed(tmp_path / "alone", FLAGS, 0, 0, 0) == 0
    took = time.monotonic() - begin
    assert kills.run_killed(tmp_path / "killed", FLAGS, 10, took / 12, 0) > 5  # a lucky study ends before the tenth
    assert kills.page_of(tmp_path / "killed") == kills.page_of(tmp_path / "alone")
