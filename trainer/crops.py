"""Parts of packed photographs, scaled and coloured, for a batch at a time on the device; and all chance comes in."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.job import sent, tensor_of

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
RESIDENT = 0.3  # of a GPU's free memory: pictures that need no more lie there

Shares: TypeAlias = NDArray[np.float64]  # [n], of a picture's side


class Pictures:
    """Packed pictures: on a GPU where they fit, else in the mapped file, from which a batch is sent over at a time."""

    def __init__(self, array: np.ndarray[Any, Any], device: torch.device) -> None:
        self.device = device
        fits = device.type == "cuda" and array.nbytes < RESIDENT * torch.cuda.mem_get_info(device)[0]
        self.images = tensor_of(array, device if fits else torch.device("cpu"))

    def take(self, samples: np.ndarray[Any, Any]) -> Tensor:
        """uint8 [n, side, side, 3] on the device."""
        if self.images.device.type == self.device.type:
            return self.images.index_select(0, sent(samples, self.device))
        # new for each batch: torch gives pinned memory out again once what is copied from it has arrived
        chosen = torch.empty(len(samples), *self.images.shape[1:], dtype=self.images.dtype, pin_memory=True)
        torch.index_select(self.images, 0, torch.from_numpy(samples), out=chosen)
        return chosen.to(self.device, non_blocking=True)


def parts(
    images: Tensor,
    corner: tuple[Shares, Shares],
    extent: tuple[Shares, Shares],
    mirrored: NDArray[np.bool_],
    side: int,
) -> Tensor:
    """A part of each picture, scaled to `side`: two products with the matrices of linear interpolation.

    `images`: uint8 [n, side, side, 3]; `corner` and `extent`: down and across.
    Returns float32 [n, 3, side, side], 0 to 255.
    """
    rows = scaling(images.shape[1], corner[0], extent[0], np.zeros_like(mirrored), side, images.device)
    columns = scaling(images.shape[2], corner[1], extent[1], mirrored, side, images.device)
    with torch.autocast(images.device.type, enabled=False):
        x = images.permute(0, 3, 1, 2).float()
        return rows[:, None] @ x @ columns.transpose(1, 2)[:, None]


def scaling(
    size: int,
    corner: Shares,
    extent: Shares,
    mirrored: NDArray[np.bool_],
    side: int,
    device: torch.device,
) -> Tensor:
    """Matrices that scale `extent` of a line of `size` pixels to `side` pixels, each a mean of those it covers.

    float32 [n, side, size]
    """
    begin, step = (sent(v * size, device).to(torch.float32)[:, None] for v in (corner, extent / side))
    ramp = torch.arange(side, device=device) + 0.5
    flip = sent(mirrored, device)[:, None]
    centres = begin + step * torch.where(flip, side - ramp, ramp)
    pixels = torch.arange(size, device=device) + 0.5
    reach = step.clamp(min=1)[:, :, None]
    shares = (1 - (pixels - centres[:, :, None]).abs() / reach).clamp(min=0)
    return shares / shares.sum(2, keepdim=True)


def coloured(x: Tensor, bright: Tensor, contrast: Tensor, vivid: Tensor) -> Tensor:
    """`x` with these factors [n, 1, 1, 1] of brightness, of contrast about its mean, of saturation about its grey."""
    grey = by_channel(GREY, x.device)
    x = x * bright
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    pale = (x * grey).sum(1, keepdim=True)
    return (pale + (x - pale) * vivid).clamp(0, 255)


def normalized(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`mean` and `std`: by channel, of 255."""
    return (x - by_channel(mean, x.device)) / by_channel(std, x.device)


@cache
def by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [channels, 1, 1], made once: to send them to a GPU is to wait until it has come so far."""
    with torch.inference_mode(False):  # whoever asks first: training takes no tensors of an evaluation
        return torch.tensor(values, device=device)[:, None, None]
