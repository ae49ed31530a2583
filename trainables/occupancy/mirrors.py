"""Mirrors windows, to augment training sets of a few windows.

Mirroring x or y of the world and of the sensor together takes a rotation R to M R M, a position p to M p and an angular
velocity w (an axial vector) to -M w. Grids are flipped about their middle, so the range has to be symmetric.
"""

from __future__ import annotations

import torch

#: Signs of the 13 numbers of a pose when x, and when y, is mirrored.
X = (-1, 1, 1, 1, 1, -1, -1, -1, 1, 1, 1, -1, -1)
Y = (1, -1, 1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1)


def mirrored(grids: torch.Tensor, poses: torch.Tensor, flips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """grids[b, T, X, Y, Z], poses[b, T, 13], flips[b, 2] bool (x, y) -> both mirrored, window by window."""
    seen = []
    for grid, (flip_x, flip_y) in zip(grids, flips.tolist(), strict=True):
        axes = [axis for axis, flip in ((1, flip_x), (2, flip_y)) if flip]
        seen.append(grid.flip(axes) if axes else grid)
    signs = torch.tensor((X, Y), dtype=poses.dtype, device=poses.device)
    each = torch.where(flips.to(poses.device)[:, :, None], signs, torch.ones_like(signs)).prod(1)
    return torch.stack(seen), poses * each[:, None]
