"""Train a Glow on scikit-learn's handwritten digits, in two minutes on one core, and draw samples."""

import argparse

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import invflow


def net(inputs: int, outputs: int) -> nn.Module:  # of a coupling; 1500 images are few, hence the dropout
    first, second = nn.Conv2d(inputs, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Dropout(0.2), invflow.ZeroConv2d(64, outputs))


def main(epochs: int, output: str) -> float:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images)[:, None]  # 1797 x 1 x 8 x 8, whole numbers 0 to 16
    train, test = digits[torch.randperm(len(digits))].float().split([1500, 297])
    flow = invflow.glow((1, 8, 8), levels=2, steps=8, net=net, values=17)
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * 23, pct_start=0.1)
    for epoch in range(epochs):
        for batch in train[torch.randperm(1500)][: 23 * 64].split(64):
            loss = flow.bits_per_dim(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {loss.item():.2f} bits/dim", flush=True)
    flow.eval()
    with torch.no_grad():
        bits = flow.bits_per_dim(test.repeat(10, 1, 1, 1)).mean().item()  # ten draws of the noise
    print(f"test images: {bits:.3f} bits/dim")
    samples = flow.sample(64, temperature=0.8).view(8, 8, 8, 8).transpose(1, 2).reshape(64, 64)
    Image.fromarray((samples * 15.9).byte().numpy()).resize((512, 512), Image.Resampling.NEAREST).save(output)
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", default="digits.png", help="picture of 64 samples")
    main(**vars(parser.parse_args()))
