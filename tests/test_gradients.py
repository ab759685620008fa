"""The gradients script end to end, tiny; its summary by hand; Figures 8 and 10 on made-up records."""

import json
import re
import runpy
from functools import partial

import pytest
from test_figures import CONFIG, FIGURES, command, draw, write_folder
from test_offline import timeless

from wsjax.errors import RunError
from wsjax.results import gradients, names
from wsjax.scripts import run as running
from wsjax.storage.records import read_run
from wsjax.training import probes

TINY = ("--first_epochs", "2", "--epochs", "2", "--seeds", "0", "1", "--hidden", "4", "--num_train", "25",
        "--num_test", "20", "--shrink", "0.3", "--batch_size", "8")  # fmt: skip
RUN = "runs/gradients/digits-mlp-adam"


def test_the_fields_have_one_name():
    assert (gradients.OLD, gradients.NEW) == (probes.OLD, probes.NEW)


def test_a_run_leaves_both_norms_in_every_row_and_is_found_finished(script, tmp_path):
    code, out, _ = script("gradients", *TINY)
    assert code == 0
    assert "WS: the new half's gradients are" in out
    config, rows, summary, _ = read_run(tmp_path / RUN)
    assert config["config"]["first_epochs"] == 2
    assert [row["samples"] for row in rows if row["method"] == "first"] == [13] * 4  # a half, rounded up
    assert all(row["old_gradient"] > 0 and row["new_gradient"] > 0 for row in rows)
    begun = {row["method"]: row for row in rows if (row["seed"], row["round"], row["epoch"]) == (1, 2, 1)}
    last = {row["method"]: row for row in rows if (row["seed"], row["round"], row["epoch"]) == (1, 2, 2)}
    for end in summary["rows"]:
        if end["seed"] == 1:
            for field, found in (("start_ratio", begun), ("end_ratio", last)):
                row = found[end["method"]]
                assert end[field] == pytest.approx(row["new_gradient"] / row["old_gradient"])
    json.dumps(summary, allow_nan=False)
    assert (tmp_path / RUN / "figure.png").exists()
    before = (tmp_path / RUN / "records.jsonl").read_bytes()
    assert script("gradients", *TINY)[0] == 0
    assert (tmp_path / RUN / "records.jsonl").read_bytes() == before


def test_a_run_that_was_stopped_ends_with_the_same_rows(script, tmp_path, monkeypatch):
    observe, seen = running._observe, []

    def stop_after_five(*arguments):
        observe(*arguments)
        seen.append(arguments[-1])
        if len(seen) == 5:
            raise KeyboardInterrupt

    assert script("gradients", *TINY, "--workdir", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(running, "_observe", stop_after_five)
        assert script("gradients", *TINY, "--workdir", tmp_path / "cut")[0] == 130
    folders = [tmp_path / name / "gradients" / "digits-mlp-adam" for name in ("whole", "cut")]
    assert 0 < len(read_run(folders[1]).rows) < len(read_run(folders[0]).rows)
    assert script("gradients", *TINY, "--workdir", tmp_path / "cut")[0] == 0
    whole, cut = (timeless(read_run(folder).rows) for folder in folders)
    assert cut == whole


def test_the_first_round_is_as_long_as_the_figure_has_it():
    module = runpy.run_path(str(FIGURES.parent / "experiments" / "gradients.py"))
    own = module["defaults"]("cifar10")
    assert (own.model, own.first_epochs, own.epochs, own.shrink) == ("resnet18", None, 30, (0.9, 0.7, 0.5, 0.3))
    assert (module["AS_RUN"], module["AUGMENTED"]) == (100, 350)


def test_bad_input_is_one_line_and_exit_code_2(script):
    code, _, error = script("gradients", "--first_epochs", "0")
    assert (code, error) == (2, "error: --first_epochs must be positive, not 0\n")


METHODS = names.from_settings(["RI", "WS", "SP"], [0.3], [0.01])
STARTS = {"first": (1.0, 4.0), "RI": (1.0, 1.0), "WS": (4.0, 2.0), "SP": (1.5, 1.25)}


def rows(seeds=(0, 1), starts=STARTS, last=3):
    """Old norms of 2; the new one's ratio is as given at the first and the last epoch, a tenth more a seed."""
    return [
        {
            "method": method, "seed": seed, "round": 1 if method == "first" else 2, "epoch": epoch,
            "samples": 2500 if method == "first" else 5000, "steps": epoch, "samples_seen": epoch,
            "train_accuracy": 0.5, "test_accuracy": 0.5, "train_loss": 1.0, "test_loss": 1.0,
            "stop": "epochs" if epoch == last else None, "train_seconds": 1.0, "eval_seconds": 0.0,
            "old_gradient": 2.0, "new_gradient": 2 * ((start if epoch < last else end) + seed / 10),
        }
        for seed in seeds for method, (start, end) in starts.items() for epoch in range(1, last + 1)
    ]  # fmt: skip


def test_summary_by_hand():
    summary = gradients.summarize(rows(), METHODS)
    assert summary["start"]["WS"]["mean"] == pytest.approx(4.05)
    assert summary["start"]["WS"]["low"] == pytest.approx(4.05 - 12.7062 * 0.05, abs=1e-4)
    assert summary["end"]["SP"]["mean"] == pytest.approx(1.3)
    assert summary["end"]["first"]["mean"] == pytest.approx(4.05)
    assert summary["evened"]["SP"]["mean"] == pytest.approx(2.5)
    assert list(summary["evened"]) == ["RI", "SP"]
    text = gradients.verdict(summary)
    assert text[1] == (
        "WS: the new half's gradients are 4.05 (3.41 to 4.69) times the old half's as the second round starts, 2.05 "
        "(1.41 to 2.69) as it ends. After a warm start the new half's gradients are larger."
    )
    # Of 3.05 above 1, 2.5 are gone; 1.55 +- 0.64 holds 1.
    assert text[2].endswith("Of the warm start's difference 82% is gone and none can be told any more.")
    table = gradients.table(summary)[1]
    assert table[2][:4] == ["WS", "2", "4.05 ± 0.64", "2.05 ± 0.64"]


@pytest.mark.parametrize(
    ("warm", "claim"),
    [(0.2, "smaller here"), (1.0, "No difference between the halves can be told")],
)
def test_sentences_follow_the_numbers(warm, claim):
    summary = gradients.summarize(rows((0, 1, 2), STARTS | {"WS": (warm, 1.0)}), METHODS)
    told = gradients.verdict(summary)
    assert claim in told[1]
    assert "of the warm start's difference" not in " ".join(told).lower()


def test_what_was_not_measured_is_left_out():
    own = rows((0,))
    for row in own:
        if row["method"] == "SP":
            row["new_gradient"] = None
    summary = gradients.summarize(own, METHODS)
    assert summary["start"]["SP"] is None
    assert summary["evened"]["SP"] is None
    assert "so this says nothing sure" in " ".join(gradients.verdict(summary))
    bare = [{name: value for name, value in row.items() if not name.endswith("_gradient")} for row in own]
    assert gradients.verdict(gradients.summarize(bare, METHODS)) == []


OWN = {name: value for name, value in CONFIG.items() if name != "fraction"}


def write(folder, finished=True, count=None, starts=STARTS, **settings):
    config = OWN | {"epochs": 3, "first_epochs": 5, "shrink": [0.3], "augment": False} | settings
    return write_folder(folder, "gradients", config, rows(config["seeds"], starts)[:count], finished)


def test_figure8_tells_the_ratios(tmp_path):
    text = draw(8, write(tmp_path / "run"))
    assert (
        "New / old half's norm as the second round starts: RI 1.05 ± 0.64; WS 4.05 ± 0.64; SP 0.3 1.55 ± 0.64." in text
    )
    assert "3 epochs a round instead of 30; 5 in the first instead of 100" in text
    assert "UNFINISHED" not in text


def test_figure10_sets_augmentation_beside_none(tmp_path):
    plain, augmented = write(tmp_path / "a"), write(tmp_path / "b", augment=True, starts=STARTS | {"WS": (2.0, 1.0)})
    for runs in ((plain, augmented), (augmented, plain)):
        text = draw(10, *runs)
        assert (
            "starts, without augmentation / with augmentation: RI 1.05 ± 0.64 / 1.05 ± 0.64; WS 4.05 ± 0.64 / 2.05"
            in text
        )
    # What both share is told once.
    assert text.count("width 8 instead of 64") == text.count("ResNet-18, width 8") == 1
    assert (
        "Without augmentation: 5 in the first instead of 100. With augmentation: 5 in the first instead of 350." in text
    )
    alone = draw(10, augmented)
    assert "No run without augmentation is given." in alone
    with pytest.raises(RunError, match=r"^runs of different settings cannot share a figure: width 8 and 16$"):
        draw(10, plain, write(tmp_path / "c", augment=True, width=16))


@pytest.mark.parametrize("number", [8, 10])
def test_figures_draw_what_there_is_and_refuse_in_one_line(tmp_path, number):
    result = command(number, write(tmp_path / "run"), "--out", tmp_path / "figure")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.txt").read_text() == result.stdout
    for count in (1, 4, 8):
        text = draw(number, write(tmp_path / f"begun{count}", finished=False, count=count, seeds=[0]))
        assert "UNFINISHED RUN" in text
    with pytest.raises(RunError, match=r"^not a run of the gradients experiment but of 'offline'$"):
        draw(number, write_folder(tmp_path / "other", "offline", OWN, [], True))
    with pytest.raises(RunError, match=r"^there are no epochs to draw yet"):
        draw(number, write(tmp_path / "empty", count=0))
    with pytest.raises(RunError, match=r"^nothing to draw"):
        draw(number)
    missing = partial(re.search, r"is not a run's folder: it has no config\.json")
    with pytest.raises(RunError) as error:
        draw(number, tmp_path / "none")
    assert missing(str(error.value))
