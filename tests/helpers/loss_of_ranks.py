"""A program for `test_loss`: train a small network on a perceptual loss in two ranks, and save its gradients.

A rank has every second image, so that the mean of the gradients over ranks is the gradient of one process.
"""

import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastdps

SEED = 3


class Autoencoder(nn.Module):
    """A few layers, and the loss of their output as a module inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(12, 3, 4, stride=2, padding=1)
        )
        self.loss = fastdps.load("lpips")

    def forward(self, images):
        return self.loss(self.layers(images).sigmoid(), images).mean()


def gradients(module, images):
    module(images).backward()
    return [parameter.grad for parameter in module.parameters() if parameter.requires_grad]


def images(count):
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = gradients(DistributedDataParallel(Autoencoder()), images(4)[rank::2])
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
    torch.distributed.destroy_process_group()
