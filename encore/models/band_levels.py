"""How much louder, band by band, what was just played is than what preceded the excerpt that is played next.

That is what a model's gains follow; see `encore.models.transformer.BandGains`.
"""

from __future__ import annotations

import torch
from torch import Tensor

MATCHED_SECONDS = (0.25, 1.0)  # before a block, and before the excerpt in the context
PIECE_SECONDS = 1.0  # at most; a band's deviation is that of the levels of such pieces of the context
MOST_MISMATCH = 2.0  # nepers
FEATURES = len(MATCHED_SECONDS) + 2


class BandLevels:
    """The levels of contexts in bands, and what follows from them for a block.

    Args:
        powers: of the contexts, `[R, BANDS, T]`; see `encore.codecs.bands.band_powers`.
        frame_rate: Hz.
    """

    def __init__(self, powers: Tensor, frame_rate: float):
        self.powers, self.total = powers, _cumulated(powers)
        self.windows = [max(1, round(seconds * frame_rate)) for seconds in MATCHED_SECONDS]
        piece = max(1, min(powers.shape[-1] // 2, round(PIECE_SECONDS * frame_rate)))
        pieces = powers[..., powers.shape[-1] % piece :].unflatten(-1, (-1, piece)).mean(-1)
        self.deviation = (0.5 * pieces.log()).std(-1, correction=0)  # [R, BANDS]

    def features(self, played: Tensor, taken: Tensor | None, first: bool) -> Tensor:
        """What the gains of a block follow, `[R, BANDS, FEATURES]`.

        By band: the mismatches in nepers, the deviation of the context's levels, and whether the block is the first.

        A mismatch is the level of the last 0.25 s (1 s) played less that of as much before the excerpt: what the
        excerpt has to be raised by to follow as it followed in the context. 0 where nothing precedes the excerpt.

        Args:
            played: powers of what comes before the block, contexts included, `[R or B, BANDS, F]`; R / B consecutive
                rows have the same past.
            taken: frames of the context that the block's prior consists of, `[R, steps]`; None: unknown.
            first: whether it follows recorded music: there are no gains before it.
        """
        found = []
        for window in self.windows:
            if taken is None:
                found.append(torch.zeros_like(self.deviation))
                continue
            begin = taken[:, :1, None].expand(-1, self.powers.shape[1], 1)
            count = begin.clamp_max(window)
            before = (self.total.gather(-1, begin) - self.total.gather(-1, begin - count)) / count.clamp_min(1)
            recent = played[..., -window:].mean(-1).repeat_interleave(len(taken) // len(played), 0)
            mismatch = 0.5 * (recent.log() - torch.where(count > 0, before.float(), 1.0)[..., 0].log())
            found.append(torch.where(count[..., 0] > 0, mismatch, 0.0).clamp(-MOST_MISMATCH, MOST_MISMATCH))
        return torch.stack([*found, self.deviation, torch.full_like(self.deviation, first)], -1)


def _cumulated(powers: Tensor) -> Tensor:
    """Sums of the frames before each frame, `[R, BANDS, T + 1]`; double precision, as differences are taken."""
    total = powers.double().cumsum(-1)
    return torch.cat([torch.zeros_like(total[..., :1]), total], -1)
