"""The transfer script end to end, tiny; its summary; Figure 11."""

import dataclasses
import json
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_figures import write_folder

from wsjax.errors import RunError
from wsjax.results import plots, transfer
from wsjax.storage.records import read_run

ROOT = Path(__file__).parents[1]
METHODS = ("L2", "HT", "SWR", "DASH", "FIRE")
SHORT = ("--epochs", 3, "--first_epochs", 2, "--seeds", 0, 1, "--fractions", 0.5, 1)
TINY = ("--hidden", 8, *SHORT)


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_every_set_is_a_source_and_all_others_its_targets(script, tmp_path):
    code, out, err = script("transfer", *TINY, "--workdir", tmp_path)
    assert code == 0, err
    for source, target, total in (("digits_low", "digits_high", 321), ("digits_high", "digits_low", 279)):
        folder = tmp_path / "transfer" / f"{source}-mlp-adam"
        config, rows, summary, _ = read_run(folder)
        assert config["config"]["dataset"] == source
        assert config["methods"][f"SP {target} 0.5"] == {
            "kind": "SP", "target": target, "fraction": 0.5, "reinit": "shrink_perturb", "shrink": 0.3, "perturb": 0.6,
        }  # fmt: skip
        assert {(row["method"], row["round"]) for row in rows} == {
            ("first", 1), *((f"{kind} {target} {share}", 2) for kind in ("RI", "WS", "SP") for share in ("0.5", "1")),
        }  # fmt: skip
        assert {row["samples"] for row in rows if row["round"] == 2} == {-(-total // 2), total}  # rounded up
        assert [(pair["target"], pair["fraction"]) for pair in summary["pairs"]] == [(target, 0.5), (target, 1.0)]
        assert (folder / "figure.png").stat().st_size > 5000
        assert f"{source} to {target}, SP - RI" in out


def test_a_new_head_is_drawn_and_not_shrunk(script, tmp_path):
    """Logistic regression is all head: for another number of classes nothing of the source is left."""
    sets = ("--datasets", "digits_low", "digits")
    code, _, err = script("transfer", *sets, *SHORT, "--model", "logistic", "--workdir", tmp_path)
    assert code == 0, err
    rows = read_run(tmp_path / "transfer" / "digits_low-logistic-adam").rows
    losses = {
        kind: [row["train_loss"] for row in rows if row["method"] == f"{kind} digits 1"] for kind in ("RI", "WS", "SP")
    }
    assert losses["RI"] == losses["WS"] == losses["SP"]
    assert len(losses["RI"]) == 6


def test_every_method_takes_a_new_head(script, tmp_path):
    sets = ("--datasets", "digits_low", "digits", "--fractions", 1, "--seeds", 0)
    for model in ("logistic", "mlp"):
        code, _, err = script(
            "transfer", *SHORT, *sets, "--model", model, "--workdir", tmp_path, "--methods", "RI", *METHODS
        )
        assert code == 0, err
        rows = read_run(tmp_path / "transfer" / f"digits_low-{model}-adam").rows
        losses = {
            kind: [row["train_loss"] for row in rows if row["method"] == f"{kind} digits 1"]
            for kind in ("RI", *METHODS)
        }
        assert all(len(own) == 3 for own in losses.values())
        for kind in ("DASH", "FIRE"):  # which add nothing to the training itself
            assert (losses[kind] == losses["RI"]) == (model == "logistic"), "that network is all head"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fractions", 0), "--fractions must lie in (0, 1], not 0.0"),
        (("--fractions", 0.5, 0.5), "--fractions must not repeat a value: 0.5 0.5"),
        (("--datasets", "digits"), "--datasets needs two or more to transfer between, not digits"),
        (("--datasets", "a/x.npz", "b/x.npz"), "--datasets must differ in their names: x x"),
        (("--datasets", "digits", "digit"), "unknown data set 'digit'; possible: "),
        (("--datasets", "digits", "digit", "--own_first"), "--own_first has no use here: all methods share the rounds"),
        (
            ("--methods", "RI", "L2", "--opt_state=keep"),
            "--opt_state=keep: L2 cannot go on with the source's optimiser; leave --opt_state or L2 out",
        ),
        (("--first_epochs", 0), "--first_epochs must be positive, not 0"),
        (
            ("--datasets", "digits_low", "digits", "--opt_state", "keep"),
            "--opt_state=keep needs data sets of one number of classes",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, tmp_path, arguments, message):
    code, _, err = script("transfer", "--workdir", tmp_path, *arguments)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_images_of_two_shapes_are_refused(script, tmp_path, monkeypatch):
    from wsjax.data import datasets

    load = datasets.load

    def larger(name, data_dir=None, image_size=None):
        found = load("digits_low")
        wide = {f"{split}_images": getattr(found, f"{split}_images").repeat(2, axis=1) for split in ("train", "test")}
        return dataclasses.replace(found, **wide) if name == "digits_high" else found

    monkeypatch.setattr(datasets, "load", larger)
    code, _, err = script("transfer", *TINY, "--workdir", tmp_path)
    assert code == 2
    assert err == ("error: --datasets must have images of one shape: digits_low (8, 8, 1), digits_high (16, 8, 1)\n")


def test_a_folder_of_another_run_is_refused_before_any_training(script, tmp_path):
    flags = (*TINY, "--methods", "WS", "--workdir", tmp_path, "--datasets")
    assert script("transfer", *flags, "digits_low", "digits_high")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    code, _, err = script("transfer", *flags, "digits", "digits_low")
    assert code == 2
    assert re.fullmatch(r"error: .*transfer/digits_low-mlp-adam holds a run of other settings \(.*\n", err)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_first_data_set_decides_the_defaults():
    defaults = runpy.run_path(str(ROOT / "experiments" / "transfer.py"))["defaults"]
    assert defaults(None) == defaults("digits_high")
    report = json.loads((ROOT / "figures" / "published" / "settings.json").read_text())["transfer"]
    own = dataclasses.asdict(defaults("cifar10"))
    assert {name: list(own[name]) if isinstance(own[name], tuple) else own[name] for name in report} == report


def test_a_killed_run_ends_in_the_same_rows(script, tmp_path):
    arguments = ("--hidden", "8", "--epochs", "20", "--first_epochs", "20", "--seeds", "0", "--fractions", "1")
    arguments += ("--methods", "RI", "WS", "--checkpoint_every", "7", "--workdir")
    command = [sys.executable, str(ROOT / "experiments" / "transfer.py"), *arguments, str(tmp_path / "a")]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "a" / "transfer" / "digits_low-mlp-adam" / "records.jsonl"
    while not records.exists() or len(records.read_text().splitlines()) < 25:  # in the second round
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for name in ("a", "b", "a"):  # a finished run given again trains nothing
        assert script("transfer", *arguments, tmp_path / name)[0] == 0
    for source in ("digits_low", "digits_high"):
        one, other = (read_run(tmp_path / name / "transfer" / f"{source}-mlp-adam").rows for name in ("a", "b"))
        assert timeless(one) == timeless(other)
        assert len(one) == 60


RI, WS = {"reinit": "random_init"}, {"reinit": "warm_start"}
SP = {"reinit": "shrink_perturb", "shrink": 0.3, "perturb": 0.01}
KINDS = {"RI": RI, "WS": WS, "SP": SP}
SCORES = {"cifar10": 0.5, "svhn": 0.8, "cifar100": 0.3}  # of RI on all of a target


def made_up(source, targets, seeds=(0, 1, 2), fractions=(0.5, 1.0)):
    """RI ends at the target's score, less 0.1 at half; WS 0.02 below, at seed 2 0.05; SP 0.01 above."""
    methods = {
        transfer.name_of(kind, target, fraction): transfer.spec_of(kind, spec, target, fraction)
        for target in targets
        for fraction in fractions
        for kind, spec in KINDS.items()
    }
    less = {"RI": 0.0, "WS": 0.02, "SP": -0.01}
    rest = {"epoch": 1, "train_accuracy": 1.0, "stop": "epochs"}
    rows = [
        {"method": "first", "seed": seed, "round": 1, "samples": 100, "test_accuracy": 0.4, **rest} for seed in seeds
    ]
    for name, spec in methods.items():
        for seed in seeds:
            score = SCORES[spec["target"]] - 0.2 * (1 - spec["fraction"]) - less[spec["kind"]]
            score -= 0.03 * (spec["kind"] == "WS" and seed == 2)
            size = {"samples": int(100 * spec["fraction"]), "test_accuracy": score}
            rows.append({"method": name, "seed": seed, "round": 2, **size, **rest})
    return rows, methods


def write_transfer(folder, source, targets, finished=True, **settings):
    rows, methods = made_up(source, targets)
    config = {
        "dataset": source, "datasets": list(SCORES), "fractions": [0.5, 1.0], "model": "resnet18", "width": 8,
        "optimizer": "sgd", "learning_rate": 0.001, "batch_size": 128, "epochs": 1, "stop": ["epochs"],
        "methods": ["RI", "WS", "SP"], "shrink": [0.3], "perturb": [0.01], "seeds": [0, 1, 2], "num_train": 100,
        "num_test": 100, "data": source, **settings,
    }  # fmt: skip
    return write_folder(folder, "transfer", config, rows, finished, methods)


def with_seconds(rows):
    return [row | dict.fromkeys(("train_seconds", "eval_seconds"), 0.0) for row in rows]


def test_the_summary_by_hand():
    rows, methods = made_up("cifar10", ["svhn"])
    summary = transfer.summarize(with_seconds(rows), methods)
    half, whole = summary["pairs"]
    assert (half["target"], half["fraction"], half["samples"]) == ("svhn", 0.5, 50)
    assert whole["gap"]["mean"] == pytest.approx(0.03)  # of 0.02, 0.02 and 0.05
    assert whole["gap"]["high"] - whole["gap"]["mean"] == pytest.approx(4.302653 * 0.01, rel=1e-5)  # t of 2, s / sqrt 3
    assert whole["gain"]["SP"]["mean"] == pytest.approx(0.01)
    assert (whole["gain"]["SP"]["minuend"], whole["gain"]["SP"]["subtrahend"]) == ("SP", "RI")
    assert len(summary["first_round"]) == 3
    columns, lines = transfer.table(summary, methods)
    assert columns[:6] == ["target", "share", "images", "RI %", "WS %", "SP %"]
    assert lines[1] == ["svhn", "1", "100", "80.00", "77.00", "81.00", "+3.00 ± 4.30", "+1.00 ± 0.00"]
    gap, gain = transfer.verdict(summary, "cifar10")
    assert gap == (
        "cifar10 to svhn, RI - WS (points, by share of the target) 0.5: +3.00 ± 4.30; 1: +3.00 ± 4.30. "
        "No difference can be told at 0.5, 1."
    )
    assert gain.endswith("SP is better at 0.5, 1.")


def test_a_kind_that_is_behind_at_a_share_is_not_taken_for_another():
    rows, methods = made_up("cifar10", ["svhn"])
    for share in (0.5, 1):  # a second of SP's scores, less 0.3
        methods[f"L2 svhn {share}"] = {**methods[f"SP svhn {share}"], "kind": "L2", "shrink": 0.9}
        own = [row for row in rows if row["method"] == f"SP svhn {share}"]
        rows += [row | {"method": f"L2 svhn {share}", "test_accuracy": row["test_accuracy"] - 0.3} for row in own]
    behind = [row for row in rows if row["method"] != "SP svhn 0.5"]
    told = transfer.verdict(transfer.summarize(with_seconds(behind), methods), "cifar10")
    assert [sentence.split(")")[1] for sentence in told[1:]] == [
        " 0.5: -29.00 ± 0.00; 1: -29.00 ± 0.00. RI is better at 0.5, 1.",
        " 1: +1.00 ± 0.00. SP is better at 1.",
    ]


def test_seeds_that_diverged_have_no_mean_and_are_counted():
    rows, methods = made_up("cifar10", ["svhn"], fractions=(1.0,))
    lost = {("WS svhn 1", 0), *(("SP svhn 1", seed) for seed in range(3))}
    rows = [row | ({"test_accuracy": None} if (row["method"], row["seed"]) in lost else {}) for row in rows]
    _, (line,) = transfer.table(transfer.summarize(with_seconds(rows), methods), methods)
    assert line[3:6] == ["80.00", "76.50 (2 of 3)", "-"]


def draw(*folders, **options):
    module = runpy.run_path(str(ROOT / "figures" / "figure11.py"))
    figure, caption = module["draw"](list(map(read_run, folders)), **options)
    plots.add_caption(figure, caption)
    figure.draw_without_rendering()
    return figure, caption


def all_sources(folder):
    return [write_transfer(folder / a, a, [b for b in SCORES if b != a]) for a in SCORES]


def test_figure11_has_a_panel_a_pair(tmp_path):
    figure, caption = draw(*all_sources(tmp_path))
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 6
    assert titles[:2] == ["CIFAR-10 to SVHN", "CIFAR-10 to CIFAR-100"]
    assert "between CIFAR-10/SVHN/CIFAR-100" in caption.ran
    assert (
        "RI - WS is above 0 in 0 of 12, below in 0, not to be told in 12; SP 0.3 - RI is above 0 in 12" in caption.came
    )
    assert "width 8 instead of 64" in caption.differs
    assert "perturb 0.01 instead of 0.0001" in caption.differs
    assert "data" not in caption.ran


def test_figure11_draws_the_reports_mistake_where_it_is_known(tmp_path):
    figure, caption = draw(*all_sources(tmp_path), as_report=True)
    dotted = [[line for line in axis.get_lines() if line.get_linestyle() == ":"] for axis in figure.axes]
    assert all(len(lines) == 1 for lines in dotted)
    assert dotted[0][0].get_ydata() == pytest.approx([40, 50])  # CIFAR-10 to SVHN: the RI of CIFAR-10
    assert (
        "CIFAR-10 to SVHN: at 0.5 RI - WS -27.00 ± 4.30, SP 0.3 - RI +31.00 ± 0.00; at 1 RI - WS -27.00"
        in caption.notes
    )
    figure, caption = draw(tmp_path / "cifar10", as_report=True)
    assert not any(line.get_linestyle() == ":" for axis in figure.axes for line in axis.get_lines())
    assert "No run has the source as a target, so that its RI is not known: CIFAR-10 to SVHN, CIFAR-10" in caption.notes


def test_figure11_says_what_is_missing(tmp_path):
    folder = write_transfer(tmp_path / "cifar10", "cifar10", ["svhn"], finished=False)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]) + lines[-1][:30])
    _, caption = draw(folder)
    assert "UNFINISHED RUN" in caption.differs
    assert "Not all ends are there: CIFAR-10 to SVHN lacks 1 of 18." in caption.differs


def test_figure11_refuses_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^nothing to draw: give the folder"):
        draw()
    one = write_transfer(tmp_path / "cifar10", "cifar10", ["svhn"])
    other = write_transfer(tmp_path / "svhn", "svhn", ["cifar10"], width=16)
    with pytest.raises(RunError, match=r"^runs of different settings cannot share a figure: width 8 and 16$"):
        draw(one, other)
    begun = write_transfer(tmp_path / "begun", "svhn", ["cifar10"])
    (begun / "records.jsonl").write_text("".join((begun / "records.jsonl").read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(RunError, match=r"^no transfer has ended yet"):
        draw(begun)
    (begun / "config.json").write_text(json.dumps({"experiment": "offline", "config": {}}))
    with pytest.raises(RunError, match=r"^not a run of the transfer experiment but of 'offline'$"):
        draw(one, begun)
