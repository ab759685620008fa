"""What a run's methods are: their table, and the order, labels, colours and lines that follow from it.

A table says by name what each method is, as a run's config.json holds it:
`{"RI": {"reinit": "random_init"}, "SP 0.3": {"reinit": "shrink_perturb", "shrink": 0.3, "perturb": 0.01}}`.
A name is whatever the user likes; nothing is read from it.
"""

from __future__ import annotations

import colorsys
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsjax.errors import RunError, printable
from wsjax.storage.rows import FIRST

Spec = Mapping[str, Any]
Methods = Mapping[str, Spec]

RANDOM, WARM, SHRINK, SIZE = "random_init", "warm_start", "shrink_perturb", "size_of_shrink_perturb"
SHORT = {RANDOM: "RI", WARM: "WS"}
"""What the report calls the two, by what they do."""
BY_PAIR = {"SP": SHRINK, "SPN": SIZE}
"""Methods of the settings that are one for each pair of a shrink and a perturb."""
AT_ONCE = {**BY_PAIR, "SPG": "gaussian_perturb"}
"""Methods that may shrink and perturb before the first round too: as settings, and as tables of methods, name them."""
RATE = "learning_rate"
"""What a method that has another learning rate than its run says of itself."""
LONGEST = 40  # characters of a name that are shown

# Okabe and Ito's colours, which colour-blind readers can tell apart; shrink-perturb runs from dark to light (1).
_FIRST_COLOR = "#444444"
_COLORS = {RANDOM: "#0072B2", WARM: "#D55E00"}
_SP_DARK, _SP_LIGHT = "#003325", "#9CF5D3"
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#8B6508", "#B9A800")
_LINES = (
    "-",
    (0, (6, 1.5, 1, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5, 1, 1.5)),
)  # plain dashes are what is published


class Style(NamedTuple):
    """How a method's line is drawn: a colour "#RRGGBB" and matplotlib's line style."""

    color: str
    line: Any = _LINES[0]


def of_data(dataset: str) -> str:
    """What a data set is called: a file or a folder by its name, tfds:NAME/CONFIG by NAME-CONFIG."""
    if dataset.startswith("tfds:"):
        return re.sub("[/:]", "-", dataset.removeprefix("tfds:"))
    return stem_of(os.path.abspath(dataset) if Path(dataset).name in ("", "..") else dataset)


def stem_of(path: str) -> str:
    """The name of a file or a folder, without the ending of an archive: what else has a dot is all name."""
    own = Path(path)
    return own.stem if own.suffix == ".npz" else own.name


def from_settings(
    methods: Iterable[str], shrink: Sequence[float], perturb: Sequence[float], others: Methods | None = None
) -> dict[str, Spec]:
    """The table of a script's settings: methods are RI, WS, SP and the others, or one at a learning rate, "RI@0.01".

    `others` says what each further method is.

    SP and SPN are a method for each shrink and perturb: "SP" where there is one, else "SP 0.3", or "SP 0.3/0.01" where
    perturb varies too; SP at a shrink of 0 is "RI x 0.3", by its perturb.
    """
    table: dict[str, Spec] = {}
    known: Methods = {name: {"reinit": reinit} for reinit, name in SHORT.items()} | dict(others or {})
    for method in methods:
        kind, rate = split(method)
        own: dict[str, Spec] = {kind: known.get(kind, {"reinit": kind})}
        if kind in BY_PAIR:
            pairs = [{"reinit": BY_PAIR[kind], "shrink": a, "perturb": b} for a in shrink for b in perturb]
            own = {kind if len(pairs) == 1 else sp_name(spec, len(perturb) > 1): spec for spec in pairs}
        if rate is not None:
            own = {f"{name}@{_exact(rate)}": {**spec, RATE: rate} for name, spec in own.items()}
        table |= own
    return table


def split(method: str) -> tuple[str, float | None]:
    """A method of the settings, and the learning rate behind its "@", if any. Raises ValueError where it is none."""
    kind, at, rate = method.partition("@")
    return kind, float(rate) if at else None


def of_run(config: Mapping[str, Any]) -> Methods:
    """The table of a run, by its config.json; runs that hold none had the settings' methods."""
    if "methods" in config:
        return config["methods"]
    settings = config["config"]
    return from_settings(*(settings.get(name, ()) for name in ("methods", "shrink", "perturb")))


def told(methods: Methods, drawn: Collection[str]) -> list[str]:
    """What those of the methods are that are drawn and whose names do not say it: "DASH with shrink 0.3, decay 0.3"."""
    own = [(label(name), methods.get(name, {})) for name in ordered(drawn, methods)]
    texts = []
    for name, spec in own:
        if spec.get("reinit") not in (None, RANDOM, WARM, SHRINK, SIZE):
            given = {key: value for key, value in spec.items() if key not in ("reinit", RATE)}
            factors = [f"{key} {value}" for key, value in given.items() if value not in (None, False)]
            texts += [f"{name} with {', '.join(factors)}"] * bool(factors)
    alike = {
        "a new network's parameters, times that": is_scaled,
        "a new network, each leaf at the norm that SP gives": lambda spec: spec.get("reinit") == SIZE,
    }
    for text, holds in alike.items():
        those = [name for name, spec in own if holds(spec)]
        texts += [f"{', '.join(those)}: {text}"] * bool(those)
    return texts


def is_scaled(spec: Spec) -> bool:
    """Whether a method is a shrink-perturb that keeps nothing: a random initialisation, scaled."""
    return spec.get("reinit") == SHRINK and spec.get("shrink") == 0


def is_control(spec: Spec) -> bool:
    """Whether a method is a control of shrink-perturb: a new network as small as it makes the old one, or another
    learning rate."""
    return is_scaled(spec) or spec.get("reinit") == SIZE or RATE in spec


def with_controls(methods: Methods) -> dict[str, list[str]]:
    """The methods by the panels of a figure: the report's, and controls beside those that they stand against.

    Empty where there are no controls of shrink-perturb.
    """
    controls = {name: spec for name, spec in methods.items() if is_control(spec)}
    shrinks = {spec["perturb"] if is_scaled(spec) else spec.get("shrink") for spec in controls.values()} - {None}
    kinds = [{"reinit": RANDOM}, *({"reinit": SHRINK, "shrink": shrink} for shrink in shrinks)]
    beside = [name for name in (matching(methods, kind) for kind in kinds) if name is not None]
    plain = [name for name in methods if name not in controls]
    return {"as in the report": plain, "controls": ordered({*beside, *controls}, methods)} if controls else {}


def perturbs(specs: Iterable[Spec]) -> set[float]:
    """The perturbs of shrink-perturbs, whose names tell them where there are several: a scaled one's has its own."""
    return {spec["perturb"] for spec in specs if "perturb" in spec and not is_scaled(spec)}


def sp_name(spec: Spec, with_perturb: bool) -> str:
    """How a shrink-perturb is called beside others; one that keeps nothing is a random initialisation, scaled."""
    if is_scaled(spec):
        return f"RI x {_exact(spec['perturb'])}"
    kind = next(kind for kind, reinit in BY_PAIR.items() if reinit == spec["reinit"])
    return f"{kind} {_exact(spec['shrink'])}" + f"/{_exact(spec['perturb'])}" * with_perturb


def find(methods: Methods, reinit: str) -> str | None:
    """The name of the method that does that; of several the plainest, None where there is none."""
    return _plainest(methods, [name for name, own in methods.items() if own.get("reinit") == reinit])


def both(methods: Methods) -> tuple[str | None, str | None]:
    """The names of random initialisation and of the warm start at the same learning rate."""
    random = find(methods, RANDOM)
    rate = methods[random].get(RATE) if random is not None else None
    return random, matching(methods, {"reinit": WARM} | ({} if rate is None else {RATE: rate}))


def matching(methods: Methods, spec: Spec) -> str | None:
    """The name of the method that is all of that, at the run's own learning rate where `spec` says no other.

    Of several the plainest, None where there is none.
    """
    alike = [name for name, own in methods.items() if own.get(RATE) == spec.get(RATE)]
    return _plainest(methods, [name for name in alike if spec.items() <= methods[name].items()])


def _plainest(methods: Methods, among: Sequence[str]) -> str | None:
    return min(among, key=lambda name: len(methods[name]), default=None)


def merge(tables: Sequence[Methods]) -> tuple[dict[str, Spec], list[dict[str, str]]]:
    """One table for the runs of one figure, and what each run's own names are called there.

    A method is what it does: the same in two runs is one, whatever they call it. "SP" alone becomes "SP 0.3", and of
    cells one after the other that share a name the second becomes "NAME (2)".

    Raises:
        RunError: two runs mean different things by a name.
    """
    merged: dict[str, Spec] = {}
    renamed = []
    several = len(perturbs(spec for table in tables for spec in table.values() if _is_sp(spec))) > 1
    for table in tables:
        own: dict[str, str] = {}
        for name, spec in table.items():
            known = [there for there, other in merged.items() if other == spec and there not in own.values()]
            if not known:
                known = [sp_name(spec, several) if _is_sp(spec) and _is_built(name, spec) else name]
                if "cells" in spec:  # which the name of a chain does not tell: those of other seeds are others
                    numbered = (f"{name} ({number})" for number in itertools.count(2))
                    known = [next(own for own in itertools.chain(known, numbered) if own not in merged)]
                if known[0] in merged:
                    what = f"{dict(merged[known[0]])} and {dict(spec)}"
                    raise RunError(f"runs that mean different things by '{name}' cannot share a figure: {what}")
                merged[known[0]] = spec
            own[name] = known[0]
        renamed.append(own)
    return merged, renamed


def ordered(names: Iterable[str], methods: Methods) -> list[str]:
    """Names as a legend has them: the first round, RI, WS, SP by shrink and perturb, its control, then the others."""
    kinds = [RANDOM, WARM, SHRINK, SIZE]

    def place(name: str) -> tuple[float, ...]:
        spec = methods.get(name, {})
        if name == FIRST:
            return (-1,)
        rate = spec.get(RATE, 0)
        if _is_sp({key: value for key, value in spec.items() if key != RATE}):
            return (kinds.index(spec["reinit"]), spec["shrink"], spec["perturb"], rate)
        reinit = spec.get("reinit")
        return (kinds.index(reinit), rate) if reinit in kinds[:2] else (len(kinds),)

    return sorted(names, key=place)


def label(name: str) -> str:
    """A name as it is shown: on one line, its middle left out where it is very long."""
    text = "first round" if name == FIRST else printable(name)
    if not text.strip():
        return f"'{text}'"
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[1 - half :]}"


def styles(names: Iterable[str], methods: Methods) -> dict[str, Style]:
    """How each method is drawn, no two alike; RI, WS and SP, shaded by its shrink, the same in every figure."""
    drawn = {FIRST: Style(_FIRST_COLOR)}
    free = _free_styles()
    for name in ordered(dict.fromkeys([*methods, *names]), methods):
        if name != FIRST:
            color = _color(methods.get(name, {}))
            own = () if color is None else (Style(color, line) for line in _LINES)
            drawn[name] = next(style for style in itertools.chain(own, free) if style not in drawn.values())
    return drawn


def mix(color: str, other: str, share: float) -> str:
    """The colour between two, at a share of the way to the other."""
    pairs = zip(bytes.fromhex(color[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round((1 - share) * a + share * b) for a, b in pairs).hex().upper()


def _is_sp(spec: Spec) -> bool:
    """Whether a method is known by its two numbers alone."""
    return spec.keys() == {"reinit", "shrink", "perturb"} and spec["reinit"] in BY_PAIR.values()


def _is_built(name: str, spec: Spec) -> bool:
    """Whether `from_settings` gave a shrink-perturb its name."""
    return name in (*BY_PAIR, sp_name(spec, False), sp_name(spec, True))


def _color(spec: Spec) -> str | None:
    """The colour that a method has in every figure, where it has one."""
    if is_scaled(spec):
        return _COLORS[RANDOM]
    if spec.get("reinit") in BY_PAIR.values() and isinstance(spec.get("shrink"), int | float):
        return mix(_SP_DARK, _SP_LIGHT, min(max(spec["shrink"], 0.0), 1.0))
    return _COLORS.get(spec.get("reinit", ""))


def _free_styles() -> Iterator[Style]:
    """Styles for other methods, without end: five colours, then hues a golden section apart."""
    for number in itertools.count():
        hue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.75)
        color = _OTHERS[number] if number < len(_OTHERS) else "#" + bytes(round(255 * c) for c in hue).hex().upper()
        yield Style(color, _LINES[number // len(_OTHERS) % len(_LINES)])


def _exact(value: float) -> str:
    """A number as short as it can be written without becoming another."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
