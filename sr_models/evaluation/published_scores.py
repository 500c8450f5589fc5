"""Published figures to hold scores against."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHALLENGE_SOURCE", "PUBLISHED", "PUBLISHED_DIV2K", "PublishedFidelity", "PublishedScores"]

CHALLENGE_SOURCE = (
    "Lugmayr et al., NTIRE 2021 Learning the Super-Resolution Space Challenge, CVPR Workshops 2021; its test set, "
    "10 samples"
)
_DREAM_SOURCE = "Zhou et al., DREAM, CVPR 2024, table 3; DIV2K validation, 4x"


@dataclass(frozen=True)
class PublishedScores:
    """Scores of a method in the NTIRE challenge of 2021.

    Attributes:
        name: the method; of participants known by a paper, the paper's name.
        scale: enlargement.
        lpips: mean LPIPS.
        lr_psnr: LR-PSNR in dB.
        diversity: diversity score in percent.
        opinion: mean opinion rank, lower is better; ``None`` if raters did not see the method.
        source: publication.
    """

    name: str
    scale: int
    lpips: float
    lr_psnr: float
    diversity: float
    opinion: float | None
    source: str = CHALLENGE_SOURCE


@dataclass(frozen=True)
class PublishedFidelity:
    """PSNR over R, G and B in dB, and mean LPIPS, of a method on the validation images of DIV2K at 4x."""

    name: str
    psnr: float
    lpips: float
    source: str = _DREAM_SOURCE


PUBLISHED = (
    PublishedScores("NCSR", 4, 0.117, 50.54, 26.041, 4.372),
    PublishedScores("SRFlow-DA", 4, 0.121, 50.70, 23.091, 4.478),
    PublishedScores("SRFlow", 4, 0.122, 49.86, 25.008, 4.410),
    PublishedScores("njtech&seu", 4, 0.149, 46.74, 26.924, 4.977),
    PublishedScores("BeWater", 4, 0.137, 49.59, 23.948, 4.720),
    PublishedScores("SSS (GAN)", 4, 0.110, 44.70, 13.285, 4.530),
    PublishedScores("SR_DL (VAE)", 4, 0.234, 39.80, 20.508, None),
    PublishedScores("FutureReference (IMLE)", 4, 0.165, 37.51, 19.636, None),
    PublishedScores("ESRGAN", 4, 0.124, 38.74, 0.0, 4.467),
    PublishedScores("NCSR", 8, 0.259, 48.64, 26.941, 4.630),
    PublishedScores("SRFlow-DA", 8, 0.266, 50.86, 23.320, 4.637),
    PublishedScores("SRFlow", 8, 0.282, 47.72, 25.582, 4.635),
    PublishedScores("njtech&seu", 8, 0.366, 29.65, 28.193, None),
    PublishedScores("BeWater", 8, 0.297, 49.63, 23.700, 5.133),
    PublishedScores("SSS (GAN)", 8, 0.237, 37.43, 13.548, 4.692),
    PublishedScores("SR_DL (VAE)", 8, 0.311, 42.28, 14.817, 4.738),
    PublishedScores("FutureReference (IMLE)", 8, 0.291, 36.51, 17.985, None),
    PublishedScores("ESRGAN", 8, 0.284, 30.65, 0.0, 4.323),
)

PUBLISHED_DIV2K = (
    PublishedFidelity("bicubic", 26.7, 0.409),
    PublishedFidelity("RRDB", 29.44, 0.253),
    PublishedFidelity("ESRGAN", 26.22, 0.124),
    PublishedFidelity("SRFlow", 27.09, 0.121),
    PublishedFidelity("HCFlow", 27.02, 0.124),
    PublishedFidelity("HCFlow++", 26.61, 0.110),
    PublishedFidelity("SR3", 27.02, 0.121),
    PublishedFidelity("SR3+DREAM", 28.10, 0.121),
    PublishedFidelity("ResShift", 25.30, 0.211),
)
