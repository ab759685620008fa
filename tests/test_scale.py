"""What is measured of a run's growth, tiny, and what keeps a million rows in bounds."""

import json

import pytest

from benchmarks import scale
from wsjax.errors import UsageError
from wsjax.storage.records import Records
from wsjax.storage.rows import check_rows

TINY = scale.Config(pools=(20, 40), rounds=(1, 3), images=10, rows=1_000, repeats=1)


@pytest.mark.parametrize("part", ["pool", "rounds", "records"])
def test_every_part_gives_a_table_of_numbers(part, tmp_path, capsys):
    tables = scale.main(scale.dataclasses.replace(TINY, only=(part,), out=tmp_path / "scale.json"))
    title, columns, rows = tables[part]
    assert title.splitlines()[0] in capsys.readouterr().out
    assert rows
    assert all(len(row) == len(columns) for row in rows)
    assert all(float(str(cell).replace(",", "")) >= 0 for row in rows for cell in row[1:])
    assert json.loads((tmp_path / "scale.json").read_text())[part] == [title, columns, rows]


def test_a_folder_does_not_grow_with_its_rounds_but_by_rows():
    _, _, rows = scale.folder(scale.dataclasses.replace(TINY, rounds=(1, 3, 5)))
    assert [row[0] for row in rows] == [1, 3, 5]
    assert rows[0][1] < rows[1][1]  # the first round's checkpoint, and then the method's own two
    assert rows[1][1:3] == rows[2][1:3]
    assert float(rows[1][3]) < float(rows[2][3])


def test_a_peak_is_no_less_than_what_it_came_from(capsys):
    scale.peak("mlp", 0, 20, 2)
    before, most, states = json.loads(capsys.readouterr().out)
    assert 0 < before <= most
    assert states == 2 * 4 * (3072 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10 + 1)


def test_an_unknown_part_is_refused():
    with pytest.raises(UsageError, match="unknown part 'row'; available: pool, rounds, memory, folder, records"):
        scale.main(scale.Config(only=("row",)))


def test_made_up_rows_are_those_of_a_run(tmp_path):
    rows = list(scale.made_up(500, seeds=2, last=3))
    check_rows(rows, {"first": range(1, 2), "RI": range(2, 4), "WS": range(2, 4)}, (0, 1))
    records = Records(tmp_path / "records.jsonl")
    records.append(rows)
    assert Records(tmp_path / "records.jsonl").rows == rows


def test_rows_share_their_names(tmp_path):
    """A million rows have each name once in memory, not a million times."""
    Records(tmp_path / "records.jsonl").append(list(scale.made_up(20, seeds=2, last=2)))
    one, two = (list(row) for row in Records(tmp_path / "records.jsonl").rows[:2])
    assert all(a is b for a, b in zip(one, two, strict=True))


def test_records_tell_a_method_and_seeds_own_rows():
    rows = list(scale.made_up(500, seeds=2, last=3))
    records = Records(rows=rows[:100])
    records.append(rows[100:])
    for name, seed in (("RI", 1), ("first", 0), ("no", 0)):
        assert records.of(name, seed) == [row for row in rows if (row["method"], row["seed"]) == (name, seed)]
    records.keep(lambda row: row["seed"] == 0)
    assert records.of("RI", 1) == []
    assert records.of("RI", 0)
    records.append([row for row in rows if row["seed"] == 1])
    assert len(records.of("RI", 1)) == len(records.of("RI", 0))
