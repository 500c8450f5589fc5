"""Measurements as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Measurement

__all__ = ["plot", "table"]


def table(results: Sequence[Measurement]) -> str:
    """Markdown table; the speed-up is over the plain PyTorch composition where that was measured."""
    slowest = {(r.case, r.threads): r.median for r in results if r.implementation == "composition"}
    header = (
        "case | threads | implementation | median ms | quartiles ms | GB/s | GFLOP/s | of the roof | speed-up | error"
    )
    lines = [header, "|".join(["---"] * len(header.split("|")))]
    for r in results:
        base = slowest.get((r.case, r.threads))
        cells = [
            r.case,
            str(r.threads),
            r.implementation,
            f"{r.median * 1e3:.3f}",
            f"{r.low * 1e3:.3f} to {r.high * 1e3:.3f}",
            f"{r.bytes_per_second / 1e9:.1f}",
            f"{r.flops_per_second / 1e9:.1f}",
            f"{r.share_of_roof:.0%}",
            f"{base / r.median:.2f}" if base else "",
            f"{r.error:.1e}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def plot(results: Sequence[Measurement], path: Path) -> None:
    """Share of the roof of every implementation, a panel for every number of threads."""
    from matplotlib.figure import Figure

    threads = sorted({r.threads for r in results})
    names = list(dict.fromkeys(r.implementation for r in results))
    cases = list(dict.fromkeys(r.case for r in results))
    figure = Figure(figsize=(7 * len(threads), 0.35 * len(cases) + 1.5), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(threads), squeeze=False)[0], threads, strict=True):
        for offset, name in enumerate(names):
            rows = [r for r in results if r.threads == count and r.implementation == name]
            positions = [cases.index(r.case) + 0.8 * (offset / len(names) - 0.5) for r in rows]
            axes.barh(positions, [100 * r.share_of_roof for r in rows], height=0.8 / len(names), label=name)
        axes.set(yticks=range(len(cases)), yticklabels=cases, xlabel="% of the roof", title=f"{count} threads")
        axes.invert_yaxis()
    axes.legend()
    figure.savefig(path)
