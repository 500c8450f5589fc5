"""The toolkit's tables against a re-implementation from its definition, which shares no code with ours."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_models.evaluation.challenge import figures_by_count, write_challenge_tables
from sr_models.evaluation.folder import evaluate_samples
from sr_models.evaluation.metrics import LPIPSDistance
from sr_models.evaluation.scoring import score_samples

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
N, SCALE = 3, 4

Map = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def plain_lpips(alexnet_weights: dict[str, torch.Tensor], linear_weights: dict[str, torch.Tensor]) -> Map:
    """LPIPS as the package computes it, with the random weights of the fixtures."""
    lpips = pytest.importorskip("lpips")
    # no time for random weights of AlexNet's classifier
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", spatial=True, pretrained=False, pnet_rand=True, verbose=False)
    network = network.to_empty(device="cpu").eval()
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    state = dict(linear_weights) | {f"lins.{key[3:]}": value for key, value in linear_weights.items()}
    for key, value in alexnet_weights.items():
        _, index, kind = key.split(".")
        state[f"net.slice{slices[int(index)]}.{index}.{kind}"] = value
    for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
        state[f"scaling_layer.{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    network.load_state_dict(state, strict=True)

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        a, b = (torch.tensor(2 * image.astype(np.float64) / 255 - 1).float() for image in (first, second))
        with torch.no_grad():
            return network(a.permute(2, 0, 1)[None], b.permute(2, 0, 1)[None])[0, 0].double().numpy()

    return distance


def reduced(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's bicubic reduction, pixel by pixel, with 8 bits after each axis, the vertical one first."""

    def weight(distance: float) -> float:
        d = abs(distance)
        if d <= 1:
            return 1.5 * d**3 - 2.5 * d**2 + 1
        return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    def along_first(pixels: np.ndarray) -> np.ndarray:
        length = len(pixels)
        rows = []
        for place in range(math.ceil(length / scale)):
            centre = (place + 0.5) * scale - 0.5
            taps = range(math.floor(centre - 2 * scale), math.ceil(centre + 2 * scale) + 1)
            weights = np.array([weight((tap - centre) / scale) for tap in taps])
            mirrored = [-1 - tap if tap < 0 else 2 * length - 1 - tap if tap >= length else tap for tap in taps]
            rows.append(np.tensordot(weights / weights.sum(), pixels[mirrored].astype(np.float64), 1))
        return np.clip(np.rint(rows), 0, 255)

    return along_first(along_first(image).transpose(1, 0, 2)).transpose(1, 0, 2)


def decibels(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return 10 * np.log10(255**2 / error) if error else math.inf


def measured(truth: np.ndarray, samples: list[np.ndarray], distance: Map) -> dict[str, float]:
    """One row of the toolkit."""
    truth = truth[: truth.shape[0] // 8 * 8, : truth.shape[1] // 8 * 8]
    samples = [sample[: truth.shape[0], : truth.shape[1]] for sample in samples]
    maps = np.stack([distance(sample, truth) for sample in samples])
    lows = [decibels(reduced(sample, SCALE), reduced(truth, SCALE)) for sample in samples]
    best = maps.mean((1, 2)).min()
    return {
        "LPIPS_mean": maps.mean(),
        "LRPSNR_worst": min(lows),
        "LRPSNR_mean": sum(lows) / len(lows),
        "score": (best - maps.min(0).mean()) / best * 100,
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], list[list[np.ndarray]]]:
    """Two images in a folder, and samples of whole images, larger than the crop; the last one is nearly perfect."""
    folder = tmp_path_factory.mktemp("truth")
    rng = np.random.default_rng(0)
    truths, samples = [], []
    for name, shape in (("0801", (36, 45)), ("0802", (40, 33))):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        truth = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
        Image.fromarray(truth).save(folder / f"{name}.png")
        truths.append(truth)
        high = tuple(-(-side // SCALE) * SCALE for side in shape)
        whole = np.pad(truth, [(0, high[0] - shape[0]), (0, high[1] - shape[1]), (0, 0)], "edge")
        noisy = [whole + rng.integers(-amount, amount + 1, whole.shape) for amount in (9, 4, 6)]
        samples.append([np.clip(image, 0, 255).astype(np.uint8) for image in noisy])
    # one grey level in one pixel: the reduced images are the same
    samples[1][2] = np.pad(truths[1], [(0, 0), (0, 3), (0, 0)], "edge")
    samples[1][2][20, 17, 1] += 1 if samples[1][2][20, 17, 1] < 255 else -1
    return folder, truths, samples


@pytest.mark.parametrize("naming", ["{index:06d}_sample{sample:05d}", "080{image}_sample00{sample}"])
def test_tables_are_those_of_the_definition(
    pictures: tuple[Path, list[np.ndarray], list[list[np.ndarray]]],
    plain_lpips: Map,
    random_lpips: LPIPSDistance,
    tmp_path: Path,
    naming: str,
) -> None:
    folder, truths, samples = pictures
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for image, drawn in enumerate(samples):
        for number, sample in enumerate(drawn):
            name = naming.format(index=image, image=image + 1, sample=number)
            Image.fromarray(sample).save(theirs / f"{name}.png")
    rows = evaluate_samples(theirs, folder, scale=SCALE, distance=random_lpips)
    write_challenge_tables(tmp_path / "Team.csv", rows)
    expected = [measured(*both, plain_lpips) for both in zip(truths, samples, strict=True)]
    with (tmp_path / "Team.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row.pop("") for row in found] == ["0801.png", "0802.png"]
    for row, values in zip(found, expected, strict=True):
        assert list(row) == ["LPIPS_mean", "LRPSNR_worst", "LRPSNR_mean", "score"]
        assert {name: float(cell) for name, cell in row.items()} == pytest.approx(values, rel=1e-6, abs=1e-6)
    with (tmp_path / "Team_mean.csv").open(newline="") as file:
        (mean,) = csv.DictReader(file)
    for name in expected[0]:
        assert float(mean[name]) == pytest.approx(np.mean([row[name] for row in expected]), rel=1e-6)
    assert mean["LRPSNR_mean"] == "inf"
    with (tmp_path / "Team_full.csv").open(newline="") as file:
        full = list(csv.DictReader(file))
    assert len(full[0]) == 1 + N * 8
    for row, values in zip(full, expected, strict=True):
        assert float(row["LPIPS_mean_n3"]) == pytest.approx(values["LPIPS_mean"], rel=1e-6)
        assert float(row["LPIPS_score_n3"]) == pytest.approx(values["score"], abs=1e-6)


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_scores_of_every_number_of_samples_match_the_reference(name: str, random_lpips: LPIPSDistance) -> None:
    """The reference, 2022's toolkit without its shuffle, computed in float32."""
    arrays = np.load(GOLDEN / "metrics.npz")
    expected = json.loads((GOLDEN / "metrics.json").read_text())["by_count"][name]
    row = score_samples(name, list(arrays[f"div/{name}/srs"]), arrays[f"div/{name}/gt"], SCALE, random_lpips)
    figures = figures_by_count(row)
    assert list(figures) == list(expected)
    for key, value in expected.items():
        tolerance = {"abs": 3e-4} if "score" in key else {"rel": 1e-5, "abs": 1e-8}
        assert figures[key] == pytest.approx(value, **tolerance), key
