"""``sr-models evaluate``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["run"]


def run(
    checkpoint: str,
    images: str,
    lr_images: str | None = None,
    output: str | None = None,
    n: int = 10,
    temperature: float = 0.9,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Score a model: likelihood, PSNR, SSIM, LR-PSNR and the NTIRE challenge's diversity.

    The diversity is measured with LPIPS if its AlexNet weights are on this machine, otherwise with the per-pixel
    squared error; the table names which.

    Example:
        sr-models evaluate --checkpoint model.safetensors --images photographs/test --output scores.csv

    Args:
        checkpoint: model.safetensors with model.json beside it.
        images: folder of high-resolution images.
        lr_images: folder of low-resolution images of the same names; without it they are made by bicubic reduction.
        output: CSV file for the scores.
        n: samples an image; the challenge takes 10.
        temperature: standard deviation of the latents.
        seed: same seed, same scores.
        device: cpu, cuda, ...
    """
    from sr_models.checkpoints.files import load_model
    from sr_models.cli._device import usable_device
    from sr_models.evaluation.evaluate import evaluate_model, scores_table, write_scores
    from sr_models.evaluation.metrics import best_available_distance

    model = load_model(checkpoint).to(usable_device(device))
    if output is not None and not Path(output).parent.is_dir():
        raise FileNotFoundError(f"folder of output {output} does not exist")
    name, distance = best_available_distance(device)
    scores = evaluate_model(
        model, images, lr_images=lr_images, samples=n, temperature=temperature, seed=seed, distance=distance
    )
    print(scores_table(scores, name))
    if output is not None:
        write_scores(Path(output), scores, name)
        print(f"wrote {output}")
