"""Writes docs/evidence.md from the figures in docs/evidence/: each claim of AMQ's authors, and what was found here."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_FOLDER = _DOCS / "evidence"
# Share of the samples on which two files of one budget differ, at most, in the runs so far: what makes their scores
# uncertain.
_DIFFERING = 0.03
_RIVALS = {
    "eigenvalue": "the top eigenvalue (HAWQ)",
    "norm": "‖Q(W) − W‖² alone",
    "uniform": "uniform widths",
    "worst": "the plan of highest perturbation of the same size and order",
    "random": "widths at random",
}
_EPISODES = 600
_STRATEGIES = ("hybrid", "trace", "eigenvalue", "norm", "uniform", "worst", "random", "haq")


@dataclass
class Cell:
    """Figures of one strategy on one network, setting and budget, a number a seed."""

    scores: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    file_seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


@dataclass
class Place:
    """A network at a budget in a setting."""

    network: str
    setting: str
    width: int
    share: float = 0.0
    samples: int = 0
    cells: dict[str, Cell] = field(default_factory=lambda: defaultdict(Cell))
    float_scores: list[float] = field(default_factory=list)

    def margin(self, first: str, second: str) -> tuple[float, float]:
        """How much `first` scores above `second`, in the mean over seeds, and what chance may do."""
        differences = [a - b for a, b in zip(self.cells[first].scores, self.cells[second].scores, strict=False)]
        return _mean(differences), math.sqrt(_DIFFERING / self.samples)

    def ratio(self, first: str, second: str) -> float:
        """KL of `second` over that of `first`."""
        return _mean(self.cells[second].divergences) / max(1e-12, _mean(self.cells[first].divergences))


def load() -> list[Place]:
    """All comparisons that were saved."""
    places: dict[tuple[str, str, int], Place] = {}
    for path in sorted(_FOLDER.glob("*.json")):
        found = json.loads(path.read_text())
        if "rows" not in found:
            continue
        budgets = list(dict.fromkeys(row["budget_bytes"] for row in found["rows"]))
        for row in found["rows"]:
            number = budgets.index(row["budget_bytes"])
            place = places.setdefault(
                (found["network"], found["setting"], number), Place(found["network"], found["setting"], number)
            )
            place.share = row["budget_bytes"] / found["float_bytes"]
            place.samples = row["samples"]
            place.float_scores.append(row["float_score"])  # differs where a seed's network was trained again
            cell = place.cells[row["strategy"]]
            cell.scores.append(row["score"])
            cell.divergences.append(sum(value for value in row["divergence"].values() if value is not None))
            # The processor's, which don't depend on what else the machine did; older results have the clock's alone.
            cell.seconds.append(row.get("processor_seconds", row["seconds"]))
            cell.files.append(row["files"])
            cell.file_seconds.append(row.get("file_processor_seconds", row.get("file_seconds", 0.0)))
            cell.bytes.append(row["bytes"])
    return list(places.values())


def against(places: Iterable[Place], rival: str, settings: Sequence[str]) -> tuple[str, str]:
    """The figure of a claim that AMQ is no worse than `rival`, and whether it holds."""
    judged = [
        place for place in places if place.setting in settings and {"trace", rival} <= set(place.cells)
    ]  # fmt: skip
    if not judged:
        return "not run", "open"
    formula, default = (_verdicts(judged, ours, rival) for ours in ("trace", "hybrid"))
    below = [f"{place.network} at {place.share:.3f} ({100 * margin:.1f} points)" for place, margin in formula.below]
    told = [place for place in judged if any(place.cells[rival].divergences)]
    better = sum(place.ratio("trace", rival) > 1 for place in told)
    ratios = [place.ratio("trace", rival) for place in told]
    figure = f"score {formula}; KL lower in {better} of {len(told)}"
    if ratios:
        figure += f" (median ratio {_median(ratios):.2f})"
    if below:
        figure += "; below: " + ", ".join(below)
    if default.judged:
        figure += f"; `hybrid` {default}, KL lower in {sum(place.ratio('hybrid', rival) > 1 for place in told)}"
    if below:
        return figure, "does not hold everywhere"
    if 2 * formula.above >= len(judged):
        return figure, "holds"
    return figure, "holds by KL; scores are level" if 3 * better >= 2 * len(told) > 0 else "level"


@dataclass(frozen=True)
class _Verdicts:
    """How often one strategy scores above another, and where it scores below by how much."""

    above: int
    level: int
    below: list[tuple[Place, float]]
    gain: float

    @property
    def judged(self) -> int:
        return self.above + self.level + len(self.below)

    def __str__(self) -> str:
        return (
            f"above in {self.above}, level in {self.level}, below in {len(self.below)} of {self.judged} "
            f"(mean {self.gain:+.1f} points)"
        )


def _verdicts(places: Iterable[Place], ours: str, rival: str) -> _Verdicts:
    above = level = 0
    below, gains = [], []
    for place in places:
        if ours not in place.cells:
            continue
        margin, chance = place.margin(ours, rival)
        gains.append(100 * margin)
        if margin > chance:
            above += 1
        elif margin >= -chance:
            level += 1
        else:
            below.append((place, margin))
    return _Verdicts(above, level, below, _mean(gains) if gains else 0.0)


def search_time(places: Iterable[Place]) -> tuple[str, str]:
    """Seconds of the agent over those of traces, and what they would be were plans that come again trained again."""
    said, ratios, whole = [], [], []
    for place in places:
        if "haq" in place.cells:
            haq, trace = place.cells["haq"], place.cells["trace"]
            seconds, spent, files = _mean(haq.seconds), _mean(haq.file_seconds), _mean(haq.files)
            ratios.append(seconds / _mean(trace.seconds))
            whole.append(ratios[-1] + spent * (_EPISODES / files - 1) / _mean(trace.seconds))
            text = (
                f"{place.network}: {ratios[-1]:.0f} times ({seconds:.0f} s, in which {files:.0f} different plans of "
                f"{_EPISODES} were trained, against {_mean(trace.seconds):.1f} s)"
            )
            # Older results don't have the seconds of the plans alone.
            said.append(text + (f"; {whole[-1]:.0f} times were each trained, as HAQ does" if spent else ""))
    if not ratios:
        return "not run", "open"
    if min(ratios) >= 100:
        return "; ".join(said), "holds"
    if min(whole) >= 100:
        return "; ".join(said), "holds where each plan is trained, as HAQ does"
    return "; ".join(said), "does not hold everywhere"


def mixed(places: Sequence[Place]) -> tuple[str, str]:
    """What activations of several widths gain over one width of the same average."""
    said, worst = [], math.inf
    for place in places:
        if place.setting in ("mixed", "mixed4", "mixed-tuned") and {"trace", "uniform"} <= set(place.cells):
            margin, chance = place.margin("trace", "uniform")
            worst = min(worst, margin + chance)
            default = 100 * place.margin("hybrid", "uniform")[0]
            said.append(f"{place.network} ({place.setting}) {100 * margin:+.1f} points (hybrid {default:+.1f})")
    if not said:
        return "not run", "open"
    return ", ".join(said), "holds" if worst >= 0 else "does not hold everywhere"


def outlier() -> tuple[str, str]:
    """The share of the largest eigenvalue."""
    said, worst = [], 0.0
    for path in sorted(_FOLDER.glob("*.spectrum.json")):
        found = json.loads(path.read_text())
        ratios = [row["first"] / row["second"] for row in found["weights"].values() if row["second"] > 0]
        shares = [row["first"] / row["trace"] for row in found["weights"].values() if row["trace"] > 0]
        worst = max(worst, _median(ratios))
        said.append(
            f"{found['network']}: the first is {_median(ratios):.1f} times the second (up to {max(ratios):.0f}), "
            f"{100 * _median(shares):.0f} % of the trace (medians of {len(ratios)} weights)"
        )
    if not said:
        return "not run", "open"
    verdict = "holds" if worst < 2 else "does not hold"
    for path in sorted(_FOLDER.glob("*.layers.json")):
        found = json.loads(path.read_text())
        rows = found["weights"].items()
        said.append(
            f"{found['network']} with random weights: "
            + ", ".join(
                f"`{name}` {row['first']:.3g}, then {row['second']:.3g}, {100 * row['first'] / row['trace']:.0f} %"
                for name, row in rows
            )
        )
        if any(row["first"] > 2 * row["second"] for _, row in rows) and verdict == "holds":
            verdict = "holds on trained networks, not with random weights"
    return "; ".join(said), verdict


def random_noise() -> tuple[str, str]:
    """Loss under random noise over the formula's."""
    said, holds = [], True
    for path in sorted(_FOLDER.glob("*.noise.json")):
        found = json.loads(path.read_text())
        noise, rounded = found["summary"]["random"], found["summary"]["rounded"]
        holds &= 0.8 <= noise["median_ratio"] <= 1.25 and noise["spearman"] >= 0.95
        said.append(
            f"{found['network']}: {noise['median_ratio']:.2f} of the formula, Spearman {noise['spearman']:.3f} "
            f"(rounding itself: {rounded['median_ratio']:.2f}, {rounded['spearman']:.3f})"
        )
    return ("; ".join(said), "holds" if holds else "does not hold") if said else ("not run", "open")


def tables(places: Sequence[Place]) -> list[str]:
    """A table a setting."""
    lines = []
    titles = {
        "plain": "Round to nearest, activations 8 bits",
        "tuned": "The same with learned rounding (300 steps a block)",
        "mixed": "Round to nearest, activations of 3 to 8 bits with mean 5 (uniform: 5)",
        "mixed4": "Round to nearest, weights at 8 bits, activations of 2 to 8 bits with mean 4 (uniform: 4)",
        "mixed-tuned": "Activations of 3 to 8 bits with mean 5, learned rounding",
        "haq": "HAQ's agent: 600 episodes, each plan trained for a pass over the data; rounding learned for both files",
    }
    for setting, title in titles.items():
        rows = [place for place in places if place.setting == setting]
        if not rows:
            continue
        names = [name for name in _STRATEGIES if any(name in place.cells for place in rows)]
        lines += ["", f"### {title}", "", f"| network | size | float | {' | '.join(names)} |"]
        lines.append("|---|---|---|" + "---|" * len(names))
        for place in sorted(rows, key=lambda place: (place.network, place.width)):
            cells = [_told(place.cells[name]) if name in place.cells else "" for name in names]
            before = f"{_mean(place.float_scores):.4f}"
            lines.append(f"| {place.network} | {place.share:.3f} | {before} | {' | '.join(cells)} |")
    return lines


def _told(cell: Cell) -> str:
    spread = f" ± {_deviation(cell.scores):.4f}" if len(cell.scores) > 1 else ""
    divergence = f"; KL {_mean(cell.divergences):.3g}" if any(cell.divergences) else ""
    return f"{_mean(cell.scores):.4f}{spread}{divergence}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def page(places: Sequence[Place]) -> str:
    """The text of docs/evidence.md."""
    nearest, tuned = ("plain", "mixed", "mixed4"), ("tuned", "mixed-tuned")
    compare = "`amq compare MODEL --data D --uniform-bits 3-4"
    claims: list[tuple[str, str, tuple[str, str]]] = [
        (
            "no human in the loop",
            "`amq quantize MODEL -o OUT --size S --data D`",
            ("one command; no option names a layer", "holds"),
        ),
        *(
            (f"better than {name} at equal bytes, {how}", f"{compare}{more}`", against(places, rival, settings))
            for rival, name in _RIVALS.items()
            for how, more, settings in (("to nearest", "", nearest), ("tuned", " --tune rounding", tuned))
        ),
        (
            "better than HAQ's agent",
            "`amq compare MODEL --data D --uniform-bits 3 --strategies trace,haq --tune rounding`",
            against(places, "haq", ("haq",)),
        ),
        ("in up to 100 times less search time", "the same", search_time(places)),
        (
            "activations of several widths help",
            f"{compare} --activation-bits 3-8 --activation-average 5`",
            mixed(places),
        ),
        ("the top eigenvalue is no outlier", "`amq spectrum MODEL --data D --plot F`", outlier()),
        (
            "the formula follows for random perturbations of equal second moment",
            "`python benchmarks/random_perturbations.py MODEL --data D`",
            random_noise(),
        ),
    ]
    lines = [
        "# The claims of AMQ's authors, and what is found here",
        "",
        "Written by `make evidence` from the figures in `docs/evidence/`, which `make bench-evidence` makes",
        "(`AMQ_DATA` names the folder of real models and images; the networks of the digits need none). AMQ here is",
        "`trace`: mean-trace(H) ‖Q(W) − W‖², exact allocation; `hybrid` is what `amq quantize` does by default. All",
        "strategies share ranges, scales, passes, bytes and tuning, so that only widths differ. A score is a mean over",
        "seeds, each with calibration samples of its own; ± is the standard deviation over seeds. Scores are called",
        f"level where they differ by less than chance may do: √({_DIFFERING} / samples), one standard error where "
        f"{100 * _DIFFERING:.0f} % of",
        "the samples differ.",
        "",
        "The authors' own figures (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852), which need ImageNet and COCO:",
        "SqueezeNext 68.68 % at 1.07 MB, against 67.83 % at 1.10 MB by the norm alone and 67.46 % at 1.09 MB by a plan",
        "of high perturbation; RetinaNet 34.1 mAP against HAWQ's 33.5 at 17.9 MB.",
        "",
        "| claim | command | found | verdict |",
        "|---|---|---|---|",
        *(f"| {claim} | {command} | {found} | **{verdict}** |" for claim, command, (found, verdict) in claims),
        "",
        "## All figures",
        *tables(places),
    ]
    notes = _FOLDER / "notes.md"
    if notes.is_file():
        lines += ["", notes.read_text().strip()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (_DOCS / "evidence.md").write_text(page(load()), encoding="utf-8")
