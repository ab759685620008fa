"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.splitlines()[0][:40] for code in EXAMPLES])
def test_an_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "retrain" in names:
        rows = (tmp_path / "weekly" / "records.jsonl").read_text().splitlines()
        assert len(rows) == 40  # 20 epochs on the first week's rows, 20 on both weeks'
    if "metrics" in names:
        assert names["metrics"]["samples"].tolist() == [8 * jax.local_device_count()] * jax.local_device_count()


def test_all_examples_are_found():
    assert len(EXAMPLES) == 4
    for name in ("def retrain(", "metrics"):  # what an example's run is asked for above
        assert sum(name in code for code in EXAMPLES) == 1
