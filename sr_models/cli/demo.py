"""``sr-models demo``."""

from __future__ import annotations

__all__ = ["run"]


def run(output: str = "runs/demo", steps: int = 1500, seed: int = 10) -> None:
    """Train a small SRFlow-DA on photographs that come inside Python packages, and write a report with pictures.

    Takes about six minutes on two CPU cores. Run it again to go on after an interruption.

    Args:
        output: folder of the run; the report is report.html in it.
        steps: training steps, at least 10.
        seed: determines the run.
    """
    from sr_models.demo.run import run_demo

    print(f"wrote {run_demo(output, steps=steps, seed=seed)}")
