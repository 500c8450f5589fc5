"""Train a Glow on scikit-learn's handwritten digits, in two minutes of one core, and draw samples: digits.png."""

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import invflow


def net(inputs: int, outputs: int) -> nn.Module:  # in every coupling; dropout because 1500 images are few
    hidden = [nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Dropout(0.2), invflow.ZeroConv2d(64, outputs))


def main(epochs: int = 60, output: str = "digits.png") -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]  # 1797 x 1 x 8 x 8, values 0 to 16
    train, test = digits[torch.randperm(len(digits))].split([1500, 297])
    flow = invflow.glow((1, 8, 8), levels=2, steps=8, net=net, values=17)
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=23 * epochs, pct_start=0.1)
    for epoch in range(epochs):
        for batch in train[torch.randperm(1500)].split(64)[:23]:
            loss = flow.bits_per_dim(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: {loss.item():.2f} bits/dim")
    with torch.no_grad():
        bits = flow.eval().bits_per_dim(test.repeat(10, 1, 1, 1)).mean().item()  # with ten draws of the noise
    samples = nn.functional.pad(flow.sample(64, temperature=0.8), [1] * 4, value=4.0)  # a frame of dark grey
    picture = samples.view(8, 8, 10, 10).transpose(1, 2).reshape(80, 80)
    Image.fromarray((15 * picture).byte().numpy()).resize((640, 640), Image.Resampling.NEAREST).save(output)
    print(f"test images: {bits:.3f} bits/dim; samples: {output}")


if __name__ == "__main__":
    main()
