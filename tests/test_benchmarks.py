"""The benchmark scripts, tiny: they run and answer with numbers. How fast they are is not a test's business."""

import pytest

from benchmarks import conv_in_scan, mlp_epoch


def test_mlp_epoch_runs_both_sides(capsys):
    pytest.importorskip("torch")
    ratio = mlp_epoch.main(mlp_epoch.Config(num_samples=200, seeds=2, repeats=1))
    assert ratio > 0
    assert "wsjax" in capsys.readouterr().out


def test_conv_in_scan_times_both_loops():
    times = conv_in_scan.main(conv_in_scan.Config(width=1, batch_size=2, steps=1, repeats=1, contrast=False))
    assert set(times) == {"python", "fori"}
    assert all(value > 0 for value in times.values())
