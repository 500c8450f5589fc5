"""Measurements as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.markdown import markdown
from benchmarks.measure import Measurement

__all__ = ["plot", "table"]

_COLUMNS = (
    "case | threads | implementation | median ms | quartiles ms | GB/s | of copy | GFLOP/s | of sgemm | of the roof | "
    "vs composition | vs compile | peak MiB | error"
)


def table(results: Sequence[Measurement]) -> str:
    """Format a Markdown table. Speed-ups are over plain PyTorch and over ``torch.compile`` of it, if measured."""
    medians = {(r.case, r.threads, r.implementation): r.median for r in results}

    def speed_up(r: Measurement, over: str) -> str:
        base = medians.get((r.case, r.threads, over))
        return f"{base / r.median:.2f}" if base else ""

    rows = []
    for r in results:
        cells = [
            r.case,
            str(r.threads),
            r.implementation,
            f"{r.median * 1e3:.3f}",
            f"{r.low * 1e3:.3f} to {r.high * 1e3:.3f}",
            f"{r.bytes_per_second / 1e9:.1f}" if r.bytes_per_second else "",
            f"{r.share_of_copy:.0%}" if r.share_of_copy else "",
            f"{r.flops_per_second / 1e9:.1f}" if r.flops_per_second else "",
            f"{r.share_of_sgemm:.0%}" if r.share_of_sgemm else "",
            f"{r.share_of_roof:.0%}" if r.share_of_roof else "",
            speed_up(r, "composition"),
            speed_up(r, "compile"),
            "" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.1f}",
            f"{r.error:.1e}",
        ]
        rows.append(cells)
    return markdown(_COLUMNS.split(" | "), rows)


def plot(results: Sequence[Measurement], path: Path) -> None:
    """Plot the share of the roof of every implementation, or its time if there is no roof.

    Args:
        results: measurements.
        path: PNG or SVG file. It has a panel for every number of threads.
    """
    from matplotlib.figure import Figure

    threads = sorted({r.threads for r in results})
    names = list(dict.fromkeys(r.implementation for r in results))
    cases = list(dict.fromkeys(r.case for r in results))
    roof = all(r.share_of_roof for r in results)
    figure = Figure(figsize=(7 * len(threads), 0.35 * len(cases) + 1.5), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(threads), squeeze=False)[0], threads, strict=True):
        for offset, name in enumerate(names):
            rows = [r for r in results if r.threads == count and r.implementation == name]
            positions = [cases.index(r.case) + 0.8 * ((offset + 0.5) / len(names) - 0.5) for r in rows]
            values = [100 * (r.share_of_roof or 0) if roof else 1e3 * r.median for r in rows]
            axes.barh(positions, values, height=0.8 / len(names), label=name)
        axes.set(yticks=range(len(cases)), yticklabels=cases, title=f"{count} threads")
        axes.set_xlabel("% of the roof: longer is faster" if roof else "ms: shorter is faster")
        axes.invert_yaxis()
    axes.legend()
    figure.savefig(path)
