"""What one writes without fastgen: import torch, load the style network, stylise, save.

The network is the plain one of many style-transfer repositories: reflection padding, instance
norm, nearest upsampling. ``benchmarks.whole_process`` measures this script as a whole process.

    python peer_script.py photo.png weights.pth out.png
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn


class ConvLayer(nn.Module):
    """Reflection padding of half the kernel, then a convolution."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, scale: int = 1):
        super().__init__()
        self.scale = scale
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(channels, out, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale > 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return self.conv2d(self.pad(x))


class Residual(nn.Module):
    """Two 3x3 convolutions around the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvLayer(channels, channels, 3)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = ConvLayer(channels, channels, 3)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.in2(self.conv2(torch.relu(self.in1(self.conv1(x)))))


class TransformerNet(nn.Module):
    """The style network, width 32."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.conv1 = ConvLayer(3, width, 9)
        self.conv2 = ConvLayer(width, 2 * width, 3, stride=2)
        self.conv3 = ConvLayer(2 * width, 4 * width, 3, stride=2)
        self.res1, self.res2, self.res3, self.res4, self.res5 = (
            Residual(4 * width) for _ in range(5)
        )
        self.deconv1 = ConvLayer(4 * width, 2 * width, 3, scale=2)
        self.deconv2 = ConvLayer(2 * width, width, 3, scale=2)
        self.deconv3 = ConvLayer(width, 3, 9)
        sizes = (width, 2 * width, 4 * width, 2 * width, width)
        self.in1, self.in2, self.in3, self.in4, self.in5 = (
            nn.InstanceNorm2d(size, affine=True) for size in sizes
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.in1(self.conv1(x)))
        x = torch.relu(self.in2(self.conv2(x)))
        x = torch.relu(self.in3(self.conv3(x)))
        x = self.res5(self.res4(self.res3(self.res2(self.res1(x)))))
        x = torch.relu(self.in4(self.deconv1(x)))
        x = torch.relu(self.in5(self.deconv2(x)))
        return self.deconv3(x)


def main(photo: str, weights: str, out: str) -> None:
    """Stylises ``photo`` into ``out``."""
    net = TransformerNet().eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    pixels = np.asarray(Image.open(photo).convert("RGB"), np.float32)
    with torch.inference_mode():
        y = net(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0))
    y = y.squeeze(0).permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8)
    Image.fromarray(y.numpy()).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
