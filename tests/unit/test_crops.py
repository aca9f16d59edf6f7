"""Parts of photographs are scaled as libraries scale pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer import crops
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


def test_a_step_makes_no_tensor_of_numbers_anew_though_an_evaluation_was_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """To send such numbers to a GPU is to wait for it; and training takes no tensor that an evaluation made."""
    crops.by_channel.cache_clear()
    x, one = torch.full((2, 3, 4, 4), 9.0), torch.ones(2, 1, 1, 1)

    def seen() -> torch.Tensor:
        return crops.normalized(crops.coloured(x, one, one, one), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))

    with torch.inference_mode():
        first = seen()
    monkeypatch.delattr(torch, "tensor")
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (weight * crops.by_channel((4.0, 5.0, 6.0), x.device) * seen()).sum().backward()  # which keeps them all
    assert seen().equal(first)
    assert first[0, :, 0, 0].tolist() == pytest.approx([2.0, 1.4, 1.0])
