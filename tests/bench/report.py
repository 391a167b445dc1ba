"""The figures of a run and the table they are shown in."""

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One kind of figure: its line in the table."""

    title: str
    unit: str
    scale: float = 1  # a sample times this is in `unit`
    digits: int = 0
    aim: float | None = None  # in the sample's own unit
    aim_is_minimum: bool = False

    def show(self, sample):
        """A sample as text, without the unit."""
        return f"{sample * self.scale:,.{self.digits}f}".replace(",", " ")

    def met(self, samples):
        """Whether the median keeps the aim; None without an aim."""
        if self.aim is None or not samples:
            return None
        return median(samples) >= self.aim if self.aim_is_minimum else median(samples) <= self.aim


@dataclass
class Row:
    """A figure and the samples of each contender."""

    figure: Figure
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender, sample):
        """Adds one sample of a contender."""
        self.samples.setdefault(contender, []).append(sample)


def table(title, rows, ours, peers):
    """One section as aligned text: our median and spread, each peer's median and how many times ours it is."""
    header = [title, "unit", ours, "min", "max", *(cell for peer in peers for cell in (peer, "x ours")), "aim", "met"]
    body = [line(row, ours, peers) for row in rows]
    widths = [max(len(cells[column]) for cells in [header, *body]) for column in range(len(header))]
    aligned = [str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2)]
    return "\n".join("  ".join(align(*cell) for align, *cell in zip(aligned, cells, widths)) for cells in [header, *body])


def line(row, ours, peers):
    """The cells of one figure."""
    figure, own = row.figure, row.samples.get(ours, [])
    cells = [figure.title, figure.unit, *(figure.show(pick(own)) if own else "-" for pick in (median, min, max))]
    for peer in peers:
        samples = row.samples.get(peer, [])
        cells.append(figure.show(median(samples)) if samples else "-")
        cells.append(f"{median(samples) / median(own):.1f}" if samples and own and median(own) else "-")
    aim = "-" if figure.aim is None else f"{'>=' if figure.aim_is_minimum else '<='} {figure.show(figure.aim)}"
    return [*cells, aim, {None: "-", True: "yes", False: "NO"}[figure.met(own)]]


def record(rows):
    """The same for a program: every sample, in the units of measurement (seconds, bytes, counts)."""
    return [{"figure": row.figure.title, "aim": row.figure.aim, "samples": row.samples} for row in rows]
