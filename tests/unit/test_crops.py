"""Parts of photographs are scaled as libraries scale pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.crops import parts


@pytest.mark.parametrize("side", [16, 32, 48])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_whole_picture_is_scaled_as_torch_does_with_the_mean_of_what_a_pixel_covers(
    side: int, mirrored: bool
) -> None:
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    none, all_ = np.zeros(2), np.ones(2)
    found = parts(images, (none, none), (all_, all_), np.full(2, mirrored), side)
    x = images.permute(0, 3, 1, 2).float()
    wanted = F.interpolate(x.flip(3) if mirrored else x, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)
