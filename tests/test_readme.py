"""The Python of the README and of docs/ runs as it stands there, and links lead somewhere."""

import functools
import re
import statistics
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np
import pytest

import wsjax
from wsjax.results import hyperparameters
from wsjax.results.claims import read_study, verdicts
from wsjax.results.measures import Group, lately
from wsjax.results.merge import merge_runs, summarize_drawn
from wsjax.results.page import markdown, sentences, verdict_table
from wsjax.storage.files import read_json
from wsjax.storage.records import read_run
from wsjax.storage.rows import FIRST, grouped, round_ends

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
README = " ".join(PAGES[0].read_text().split())  # whatever its lines are
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


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
    assert len(EXAMPLES) == 10
    for name in ("def retrain(", "metrics"):  # what an example's run is asked for above
        assert sum(name in code for code in EXAMPLES) == 1


def test_every_public_name_has_its_place():
    text = (ROOT / "docs" / "library.md").read_text()
    index = set(re.findall(r"`(\w+)`", text.split("## Every name")[1]))
    assert set(wsjax.__all__) <= index
    assert all(hasattr(wsjax, name) for name in index - {"where"})


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not link.startswith("http")]
    for link in links:
        place, _, heading = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if target.suffix == ".md" else []
        names = [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings]
        assert not heading or heading in names, link


@functools.cache
def judged():
    claims = read_json(ROOT / "figures" / "published" / "claims.json")["claims"]
    return verdicts(claims, read_study(ROOT / "figures" / "results"))


def test_the_verdicts_are_what_the_records_come_to():
    assert (ROOT / "figures" / "results" / "verdicts.md").read_text() == markdown(judged())
    assert sentences(judged())[0] in README
    assert verdict_table(judged()).markdown in PAGES[0].read_text()


def test_the_claims_among_the_findings_are_told_as_they_are_judged():
    parts = {own.claim["id"]: own.estimates for own in judged()}
    (gap,), (online,), (matched,) = (parts[name] for name in ("gap", "online-gap", "matched-rate"))
    table = sorted(percent(own.mean) for own in parts["gap-table"])
    told = (
        "ends {} to {} points below random initialisation in the six rows of Table 1 (three optimisers, two data "
        "sets), {} below it online ({} to {}), and {} below it after 30 epochs a round at a small rate (Figure 1; {} "
        "to {})"
    )
    numbers = (online.mean, *online.interval, gap.mean, *gap.interval)
    assert told.format(table[0], table[-1], *map(percent, numbers)) in README
    most, more = (percent(own.mean) for own in parts["shrink-perturb"])
    assert f"It ends {most} points above random initialisation at a shrink of 0.1 and {more} at 0.3" in README
    low, high = map(percent, matched.interval)
    assert f"ends {percent(matched.mean)} points above RI at the best of three rates ({low} to {high})" in README


def test_what_a_stop_looks_at_is_told_as_the_records_have_it():
    results = ROOT / "figures" / "results"
    scores = {}
    for folder in (results / "table1-mlp-cifar10-adam", results / "cpu" / "offline" / "table1-7"):
        run = read_run(folder)
        settings = run.config["config"]
        assert [settings[name] for name in ("model", "optimizer", "dataset")] == ["mlp", "adam", "cifar10"]
        ends = [row for row in round_ends(run.rows) if row["round"] == 2]
        own = {name: [row["test_accuracy"] for row in ends if row["method"] == name] for name in ("RI", "WS")}
        assert {len(values) for values in own.values()} == {5}
        scores[settings.get("train_accuracy", "running")] = {
            name: f"{statistics.mean(values):.2%}" for name, values in own.items()
        }
    running, after = scores["running"], scores["after"]
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    assert re.search(rf"\| Adam \| {running['RI'][:-1]} ±[^|]*\| 46.5 \| {running['WS'][:-1]} ±", text)
    assert re.search(rf"Adam gives RI {after['RI'][:-1]} ± \S+ and WS {after['WS'][:-1]} ±", text)


def percent(share):
    return f"{100 * share:.1f}"


def against_random(folders, rounds, methods):
    """Points above RI after so many online rounds and percent of its steps over all, means over each method's seeds."""
    drawn = merge_runs([read_run(ROOT / "figures/results/cpu/online" / folder) for folder in folders], "online")
    ends = {(row["method"], row["seed"]): row for row in summarize_drawn(drawn)["rows"]}
    assert {row["round"] for row in ends.values()} == {rounds}
    found = []
    for method, seeds in methods.items():
        pairs = [(row, ends["RI", seed]) for (name, seed), row in ends.items() if name == method]
        assert len(pairs) == seeds
        gain = statistics.mean(own["test_accuracy"] - other["test_accuracy"] for own, other in pairs)
        found.append((100 * gain, 100 * statistics.mean(own["steps"] / other["steps"] for own, other in pairs)))
    return found


def test_what_shrink_perturb_gains_online_is_told_as_the_records_have_it():
    methods = {"SP 0.2": 23, "SP 0.4": 19, "SP 0.6": 7}
    runs = ["figure6", *(f"figure6-{part}" for part in range(2, 6))]
    gains, shares = zip(*against_random(runs, 5, methods), strict=True)
    told = "ends {:.1f}, {:.1f} and {:.1f} points above RI, for {:.0f}, {:.0f} and {:.0f} % of its steps"
    assert told.format(*gains, *shares) in README


FIGURE_5 = ("figure1", "figure5", "figure5-2", "figure5-3", "figure5-4", "figure5-5")


def gains(ends, one, other):
    """Points of one method above another at the end, the mean over the seeds that both have, and how many these are."""
    pairs = [(own, ends[other, seed]) for (name, seed), own in ends.items() if name == one and (other, seed) in ends]
    return 100 * statistics.mean(own["test_accuracy"] - there["test_accuracy"] for own, there in pairs), len(pairs)


def test_the_gap_after_a_few_epochs_is_told_as_the_records_have_it():
    runs = [read_run(ROOT / "figures/results/cpu/offline" / name) for name in FIGURE_5[:3]]
    group = Group(merge_runs(runs, "offline"), [])
    told = []
    for run in (group.run, lately(group).run):
        gap, seeds = gains({(row["method"], row["seed"]): row for row in run.ends}, "RI", "WS")
        assert seeds == 12
        told.append(f"{gap:+.1f}")
    assert "it is {} points at the last epoch, and {} over the last three".format(*told) in README


def test_equal_settings_are_told_as_the_records_have_them():
    runs = [read_run(path) for path in sorted((ROOT / "figures/results/cpu/hyperparameters").glob("figure4*"))]
    unchained = merge_runs([run for run in runs if not run.config["config"]["chained"]], "hyperparameters")
    summary = hyperparameters.summarize(unchained.rows, unchained.methods)
    same, best = summary["same"], summary["best"]
    shares = [f"{100 * own['of_RI']['samples_seen']['mean']:.0f} %" for own in (same, best)]
    by_cell = {}
    for row in round_ends(unchained.rows):
        if row["samples"] == 5000:
            by_cell.setdefault((row["method"][:2], row["method"].split()[-1], row["seed"]), []).append(
                row["test_accuracy"]
            )
    cells = {}
    for (kind, cell, seed), scores in by_cell.items():
        if kind == "WS" and ("RI", cell, seed) in by_cell:
            gap = by_cell["RI", cell, seed][0] - statistics.mean(scores)
            cells.setdefault(cell, []).append(100 * gap)
    gaps = sorted(map(statistics.mean, cells.values()))
    told = f"points, for {shares[0]} of RI's samples: {gaps[-1]:+.1f} to {gaps[0]:+.1f} by cell"
    assert f"RI - WS is {percent(same['gap']['mean'])} {told}" in README
    assert f"whose steps are too small for RI a warm start ends {-gaps[0]:.1f} points above it" in README
    told = f"best WS is {percent(best['gap']['mean'])} points behind the best RI, for {shares[1]}, and whether"
    assert told in README


def test_what_size_alone_gains_is_told_as_the_records_have_it():
    """Of new networks times the shrink, against shrink-perturb and random initialisation."""
    cpu = ROOT / "figures" / "results" / "cpu"
    online = merge_runs([read_run(run) for run in sorted(cpu.glob("online/figure6*"))], "online")
    ends = {(row["method"], row["seed"]): row for row in summarize_drawn(online)["rows"]}
    over_random, seeds = gains(ends, "RI x 0.4", "RI")
    over_kept, _ = gains(ends, "RI x 0.4", "SP 0.4")
    exact, exact_over_kept = (gains(ends, "SPN 0.4", other)[0] for other in ("RI", "SP 0.4"))
    offline = lately(Group(merge_runs([read_run(cpu / "offline" / run) for run in FIGURE_5], "offline"), [])).run.ends
    ends = {(row["method"], row["seed"]): row for row in offline}
    (small, count), (smaller, _) = (gains(ends, f"SPN {shrink}", "RI") for shrink in (0.3, 0.1))
    kept, kept_most = (gains(ends, f"SP {shrink}", f"SPN {shrink}")[0] for shrink in (0.3, 0.1))
    assert (seeds, count) == (4, 4)
    assert (
        f"Online, at 0.4, it ends {over_random:.1f} points above RI and {over_kept:.1f} above SP (four seeds), and a "
        f"new network that has SP's norms leaf by leaf (SPN) {exact:.1f} above RI and {exact_over_kept:.1f} above SP"
    ) in README
    assert (
        f"Offline, at 0.3, SPN ends {small:.1f} points above RI, and {-kept:.1f} above SP, which cannot be told from 0"
        f"; at 0.1 it ends {smaller:.1f} above RI, and SP {kept_most:.1f} above that, which after 12 epochs"
    ) in README
    ends = {(row["method"], row["seed"]): row for row in summarize_drawn(online)["rows"]}
    (over, seeds), (above, _), (below, _) = (gains(ends, "RI@0.003", other) for other in ("RI", "SP 0.4", "SP 0.2"))
    told = f"ends {over:.1f} points above RI (four seeds), {above:.1f} above SP 0.4 and {-below:.1f} below SP 0.2"
    assert seeds == 4
    assert f"Online RI at three times the rate {told}" in README
    first = [row for row in summarize_drawn(online)["rounds"] if row["round"] == 1]
    ends = {(row["method"], row["seed"]): row for row in first}
    leads = [gains(ends, f"SP {shrink}", "RI")[0] for shrink in (0.2, 0.4, 0.6)]
    assert "so that SP is {:.1f}, {:.1f} and {:.1f} points ahead before".format(*leads) in README


def test_the_board_is_told_as_the_records_have_it():
    own = dict.fromkeys(("SP 0.3", "DASH", "FIRE", "RI@0.01", "SPN 0.3"), 3)
    (sp, sp_steps), *others, (size, size_steps) = against_random(["board", "board-2"], 4, own)
    assert (
        f"SPN 0.3 ends {size:.1f} above RI, but for {size_steps:.0f} %: {sp - size:.1f} points less than SP" in README
    )
    rows = read_run(ROOT / "figures/results/cpu/online/board").rows
    steps = {(row["method"], row["seed"]): row["steps"] for row in round_ends(rows) if row["round"] == 4}
    last = statistics.mean(steps["SP", seed] / steps["RI", seed] for seed in (2021, 2022, 2023))
    note = f"({100 * last:.0f} % in the last round, one before the same SP stalled at full width)"
    told = (
        "SP 0.3 ends {:.1f} points above RI for {:.0f} % of its steps {}, DASH {:.1f} for {:.0f} %, FIRE {:.1f} for "
        "{:.0f} %, and RI at ten times the rate {:.1f} for {:.0f} %"
    ).format(sp, sp_steps, note, *(value for pair in others for value in pair))
    assert told in README


def test_the_board_at_full_width_is_told_as_the_records_and_the_authors_logs_have_it():
    folder = ROOT / "figures" / "results" / "cifar10-resnet18-dash"
    rows = [row for name in ("ri-ws-sp", "dash-ri-0.01", "spg") for row in read_run(folder / name).rows]
    own = {row["method"]: percent(row["test_accuracy"]) for row in round_ends(rows) if row["round"] == 10}
    (protocol, *_) = read_json(ROOT / "figures" / "published" / "board.json")["protocols"]
    logs = {at["method"]["reinit"]: at["accuracy"] for at in protocol["numbers"] if at["round"] == 10}
    told = (
        f"RI has {own['RI']} % (theirs {logs['random_init']}), their shrink-perturb {own['SPG']} "
        f"({logs['gaussian_perturb']}), DASH {own['DASH']} ({logs['dash']}). The control that they lacked, RI at ten "
        f"times the rate, has {own['RI@0.01']}."
    )
    assert told in README


def test_the_rounds_at_full_width_are_told_as_the_records_and_the_report_have_them():
    run = read_run(ROOT / "figures" / "results" / "full-width" / "rounds-1-to-18")
    found = grouped(round_ends(run.rows), itemgetter("method", "round"))
    report = read_json(ROOT / "figures" / "published" / "report.json")["figure2_online"]["f2c99"]
    last, steps = {}, {}
    for name in ("RI", "WS"):
        assert len(found[name, 18]) == 3
        own = percent(statistics.mean(row["test_accuracy"] for row in found[name, 18]))
        last[name] = own, percent(report[f"acc_{name}"][17])
        steps[name] = [statistics.mean(row["steps"] for row in found[name, number]) for number in range(2, 19)]
    (ri, ri_report), (ws, ws_report) = last.values()
    told = (
        f"at 18,000 images RI has {ri} % (the report {ri_report}), WS {ws} ({ws_report}). Rounds from scratch rise "
        f"from {steps['RI'][0]:,.0f} to {max(steps['RI']):,.0f} steps, warm ones take {min(steps['WS']):,.0f} to "
        f"{max(steps['WS']):,.0f} without order"
    )
    assert told in README


def test_shrink_perturb_at_full_width_is_told_as_the_records_have_it():
    """By the seeds that have it: how far behind random initialisation it ends, and its share of the steps."""
    folder = ROOT / "figures" / "results" / "cifar10-resnet18-ten-rounds"
    ends = [row for run in sorted(folder.glob("seed-*")) for row in round_ends(read_run(run).rows)]
    last = {(row["method"], row["seed"]): row["test_accuracy"] for row in ends if row["round"] == 10}
    seeds = [seed for name, seed in last if name == "SP"]
    assert len(seeds) == 2
    behind = statistics.mean(last["RI", seed] - last["SP", seed] for seed in seeds)
    share = statistics.mean(
        sum(row["steps"] for row in ends if (row["method"], row["seed"]) == ("SP", seed))
        / sum(row["steps"] for row in ends if row["method"] in ("RI", FIRST) and row["seed"] == seed)
        for seed in seeds
    )
    assert f"here it ends {percent(behind)} points behind, for {100 * share:.0f} % of RI's steps" in README


def test_the_second_round_at_full_width_is_told_as_the_records_and_the_report_have_it():
    folder = ROOT / "figures" / "results" / "full-width"
    report = read_json(ROOT / "figures" / "published" / "report.json")["figure1_and_5_curves_epoch_accuracy"]
    told = []
    for name, curve in (("ri", "RI"), ("ws", "WS"), ("sp-0.1", "lam0.1"), ("sp-0.3", "lam0.3")):
        rows = read_run(folder / f"second-round-{name}").rows
        (own,) = [row["test_accuracy"] for row in rows if (row["round"], row["epoch"]) == (2, 16)]
        epochs, accuracies = zip(*report[f"fig5_offline_sp_sigma0.01:{curve}"], strict=True)  # epochs from 0
        told.append((percent(own), percent(np.interp(15, epochs, accuracies) / 100)))
    (ri, ri_report), (ws, ws_report), (one, one_report), (three, three_report) = told
    assert (
        f"RI {ri} % (the report {ri_report}), WS {ws} ({ws_report}), SP at 0.1 and 0.3 {one} and {three} "
        f"({one_report} and {three_report})"
    ) in README
    last = {}
    for name in ("ri", "ws"):
        rows = read_run(folder / f"second-round-{name}").rows
        last[name] = {row["epoch"]: row["test_accuracy"] for row in rows if row["round"] == 2}
    epoch = max(last["ws"])
    ri, ws = (percent(last[name][epoch]) for name in ("ri", "ws"))
    assert f"By epoch {epoch} RI has passed WS, {ri} and {ws};" in README
    assert last["ri"][16] < last["ws"][16]


def test_eight_weeks_of_retraining_are_told_as_they_were_measured():
    stored = read_json(ROOT / "figures" / "results" / "retraining" / "eight-weeks.json")["rows"]
    rows = {(row["models"], row["week"]): row for row in stored}
    page = " ".join((ROOT / "docs" / "retraining.md").read_text().split())
    methods = ("shrink-perturb", "scratch", "continue")
    for week in range(1, 9):
        own = [rows[method, week] for method in methods]
        tested = " | ".join(f"{100 * row['test_accuracy'] + 1e-9:.1f}" for row in own)  # 47.25 is 47.3
        steps = " | ".join(f"{row['steps']:,}" for row in own)
        assert f"| {week} | {tested} | {steps} |" in page
    totals = [sum(rows[method, week]["steps"] for week in range(1, 9)) for method in methods]
    assert "| all | | | | {:,} | {:,} | {:,} |".format(*totals) in page
    assert f"for {totals[0] / totals[1]:.0%}".replace("%", " %") + " of its steps" in page
    last = {
        name: (f"{100 * row['test_accuracy'] + 1e-9:.1f}", row["steps"])
        for (name, week), row in rows.items()
        if week == 8
    }
    raised, most, shrunk = (
        last[name] for name in ("scratch, rate 0.003", "scratch, rate 0.01", "shrink-perturb, rate 0.003")
    )
    assert (
        f"{raised[0]} % at `--learning_rate=0.003` ({raised[1]:,} steps) and at {most[0]} % at 0.01 ({most[1]:,}"
        in page
    )
    assert f"shrink-perturb at 0.003 end at {shrunk[0]} % ({shrunk[1]:,} steps in the last)" in page
    by, scratch, on = (last[method] for method in methods)
    assert f"leave {by[0]} % by shrink-perturb, {scratch[0]} from scratch and {on[0]} by going on" in README
    shares = [f"{own[1] / by[1]:.1f}" for own in (raised, most)]
    assert f"ends at {raised[0]} and {most[0]}, for {shares[0]} and {shares[1]} times shrink-perturb's steps" in README


def test_the_times_on_a_gpu_are_told_as_they_were_measured():
    rows = read_json(ROOT / "figures" / "results" / "benchmarks" / "h200.json")["rows"]
    full, half = (
        {row["against"]: row for row in rows if "epoch" in row["subject"] and row["precision"] == precision}
        for precision in ("float32", "bfloat16")
    )
    eager, fast = "PyTorch, eager", "PyTorch, torch.compile"
    told = (
        f"takes {full[eager]['seconds']:.2f} s in TF32 and {half[eager]['seconds']:.2f} s in bfloat16, "
        f"{full[eager]['ratio']:.2f} and {half[eager]['ratio']:.2f} of PyTorch's time and {full[fast]['ratio']:.2f} "
        f"and {half[fast]['ratio']:.2f} of that under"
    )
    assert told in README


def test_what_the_wrong_curve_does_is_told_as_the_records_have_it():
    means = {}
    for source, target in (("cifar10", "cifar100"), ("cifar100", "cifar10")):
        folders = (ROOT / "figures" / "results" / "cpu" / "transfer").glob(f"figure11*-{source}")
        rows = [row for folder in folders for row in round_ends(read_run(folder).rows)]
        for kind in ("RI", "WS"):
            own = [row for row in rows if row["method"] == f"{kind} {target} 1"]
            assert len(own) == 5
            means[kind, target] = 100 * statistics.mean(row["test_accuracy"] for row in own)
    there = means["RI", "cifar10"] - means["WS", "cifar100"]
    back = means["RI", "cifar100"] - means["WS", "cifar10"]
    assert f"a gap of {there:.1f} points from CIFAR-10 to CIFAR-100 and of {back:.1f} on the way back" in README


def test_chained_warm_starts_are_told_as_the_records_have_them():
    """Behind round 2, the first on all of the data; and none that is not chained."""
    runs = [read_run(path) for path in sorted((ROOT / "figures/results/cpu/hyperparameters").glob("figure4*"))]
    alone, chained = (
        [
            row
            for run in runs
            if run.config["config"]["chained"] == chain
            for row in round_ends(run.rows)
            if row["method"].startswith("WS") and row["round"] > 1
        ]
        for chain in (False, True)
    )
    assert min(row["epochs"] for row in alone) > 1
    later = [row["epochs"] == 1 for row in chained if row["round"] > 2]
    told = f"{sum(later)} of {len(later)} warm starts after the first end after one epoch"
    assert told in README


def test_the_readme_has_links():
    assert len(re.findall(r"\]\(docs/", PAGES[0].read_text())) >= 4
