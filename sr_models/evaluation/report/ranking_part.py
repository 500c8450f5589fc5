"""The part of a report that ranks methods, beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sr_models.evaluation import ranking
from sr_models.evaluation.published_scores import CHALLENGE_SOURCE, PUBLISHED
from sr_models.evaluation.report.method import Method

__all__ = ["ranking_part"]


def ranking_part(methods: Sequence[Method], scale: int) -> dict[str, Any] | None:
    """Rank methods as the challenge does, and the published ones of the same scale among themselves.

    Args:
        methods: of the same images. One whose figures are no numbers has no rank.
        scale: enlargement.

    Returns:
        The table; ``None`` without LPIPS.
    """
    if methods[0].distance_name != "lpips":
        return None
    ours = [
        ranking.MethodScores(method.name, mean.distance, mean.lr_psnr, mean.diversity)
        for method in methods
        if not any(map(math.isnan, ((mean := method.mean).distance, mean.lr_psnr, mean.diversity)))
    ]
    published = ranking.published_methods(scale) if scale in {row.scale for row in PUBLISHED} else []
    rows = [
        {
            "name": row.method.name,
            "published": marked,
            "cells": [
                f"{row.method.lpips:.3f}",
                f"{row.method.lr_psnr:.2f}" if math.isfinite(row.method.lr_psnr) else "exact",
                f"{row.method.diversity:.2f}",
                "" if row.method.opinion is None else f"{row.method.opinion:.3f}",
                "yes" if row.eligible else "no",
                *("" if place is None else str(place) for place in (row.lpips, row.diversity, row.final)),
            ],
        }
        for group, marked in ((ours, False), (published, True))
        if group
        for row in ranking.rank(group)
    ]
    explanation = (
        f"A method is eligible from {ranking.LEAST_LR_PSNR:g} dB of LR-PSNR on; eligible ones are ranked, 1 is best. "
        "The challenge's final rank is that of the mean of two ranks, by the opinion of raters and by the diversity."
    )
    if published:
        explanation += (
            f" Published rows are quoted ({CHALLENGE_SOURCE}) and ranked among themselves: other images, so that their "
            "figures tell the order of magnitude only."
        )
    headings = [
        ("Method", ""),
        ("LPIPS", "lower"),
        ("LR-PSNR", "higher, dB"),
        ("Diversity", "higher, %"),
        ("Opinion", "mean rank, lower"),
        ("Eligible", ""),
        ("Rank", "by LPIPS"),
        ("Rank", "by diversity"),
        ("Final rank", ""),
    ]
    return {"headings": headings, "rows": rows, "explanation": explanation}
