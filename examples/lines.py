"""Lines of handwritten digits, composed of single ones: what the reading demo learns from and is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data import IMAGE_SIZE, Split

MIN_DIGITS, MAX_DIGITS = 3, 6
INK = 0.15  # a pixel at least this dark belongs to the digit
MIN_GAP, MAX_GAP = -1, 8  # columns between two digits; below 0 they overlap
MAX_SHIFT = 2  # rows a digit stands above or below the middle
MARGIN = 4  # empty columns at both ends


@dataclass(frozen=True)
class Lines:
    """A batch of lines, padded to one width.

    Attributes:
        images: ``[B, 1, 28, W]`` float32, pixels in 0 to 1.
        widths: ``[B]`` int64, each line's own width in columns.
        digits: what stands there, ``[B]`` lists of 3 to 6 digits.
    """

    images: Tensor
    widths: Tensor
    digits: list[list[int]]

    def __len__(self) -> int:
        return len(self.digits)


def compose(split: Split, count: int, generator: torch.Generator, *, distorted: bool = False) -> Lines:
    """Writes ``count`` lines with the split's images, each drawn at random, set side by side with uneven gaps.

    Args:
        split: whose images are drawn.
        count: lines.
        generator: decides everything.
        distorted: turn, slant and stretch each digit a little, so that no two are alike (for training).
    """

    def draw(low: int, high: int, n: int) -> list[int]:
        numbers: list[int] = torch.randint(low, high + 1, (n,), generator=generator).tolist()
        return numbers

    lengths = draw(MIN_DIGITS, MAX_DIGITS, count)
    chosen = torch.tensor(draw(0, len(split) - 1, sum(lengths)))
    images = split.images[chosen]
    glyphs = iter([_trimmed(image) for image in (_distorted(images, generator) if distorted else images)[:, 0]])
    labels = split.labels[chosen].split(lengths)
    pictures = []
    for n in lengths:
        gaps, shifts = draw(MIN_GAP, MAX_GAP, n), draw(-MAX_SHIFT, MAX_SHIFT, n)
        pictures.append(_written([next(glyphs) for _ in range(n)], gaps, shifts))
    widths = torch.tensor([picture.shape[1] for picture in pictures])
    padded = torch.zeros(count, 1, IMAGE_SIZE, int(widths.max()))
    for image, picture in zip(padded, pictures, strict=True):
        image[0, :, : picture.shape[1]] = picture
    return Lines(padded, widths, [digits.tolist() for digits in labels])


def _distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of ``[N, 1, 28, 28]`` turned by up to 9 degrees, slanted by up to 0.2, stretched by up to 15 %."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    turn, slant = between(-0.16, 0.16), between(-0.2, 0.2)
    wide, high = between(0.85, 1.15), between(0.85, 1.15)
    zero = torch.zeros(len(images))
    rows = (wide * turn.cos(), slant - turn.sin(), zero, turn.sin(), high * turn.cos(), zero)
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1).unflatten(1, (2, 3)), list(images.shape), False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _trimmed(image: Tensor) -> Tensor:
    """``[28, 28]`` without the empty columns at its sides."""
    inked = (image > INK).any(dim=0).nonzero()
    return image[:, int(inked.min()) : int(inked.max()) + 1] if len(inked) else image


def _written(glyphs: list[Tensor], gaps: list[int], shifts: list[int]) -> Tensor:
    """The glyphs side by side, each moved up or down; where two overlap, the darker pixel."""
    line = torch.zeros(IMAGE_SIZE, 2 * MARGIN + sum(glyph.shape[1] for glyph in glyphs) + sum(gaps[1:]))
    column = MARGIN
    for glyph, gap, shift in zip(glyphs, [0, *gaps[1:]], shifts, strict=True):
        column += gap
        height = IMAGE_SIZE - abs(shift)
        target = line[max(shift, 0) : max(shift, 0) + height, column : column + glyph.shape[1]]
        torch.maximum(target, glyph[max(-shift, 0) : max(-shift, 0) + height], out=target)
        column += glyph.shape[1]
    return line
