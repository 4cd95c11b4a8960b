"""Mean and standard deviation of latents, stored beside them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from encore.data.index_files import Numbers, load_columns
from encore.data.latent_cache import LatentCache

MOST = 8192  # segments that are read, spread evenly: the deviations of more of them differ by some percent at most


class LatentStatistics:
    """Mean and standard deviation of each channel over all frames of segments.

    The result is stored under a hash of the contents that it depends on.

    Args:
        cache: of the latents.
        numbers: of the segments; each counts as often as it is named. Of more than `MOST` these are taken.
    """

    def __init__(self, cache: LatentCache, numbers: Numbers):
        count = min(MOST, len(numbers))
        self.cache, self.numbers = cache, numbers[np.arange(count) * len(numbers) // max(1, count)]
        self.name = f"statistics-{cache.content_hash(self.numbers)[:16]}.npz"

    def stored(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation, `[D]` each, as an earlier run has stored them; None if none has."""
        path = self.cache.folder / self.name
        if not path.is_file():
            return None
        try:
            columns = load_columns(path)
            return torch.from_numpy(columns["mean"]), torch.from_numpy(columns["deviation"])
        except (OSError, ValueError, KeyError) as error:
            self.cache.delete(path, str(error))
            return None

    def sums(self, rank: int = 0, ranks: int = 1) -> Tensor:
        """Number of frames, sums and sums of squares over this rank's share of the segments, float64 `[1 + 2 D]`.

        Raises:
            EncoreError: latents cannot be read.
        """
        total = torch.zeros(1 + 2 * self.cache.latent_dim, dtype=torch.float64)
        for number in self.numbers[rank::ranks].tolist():
            latents = self.cache.load(number).double()
            frames = torch.tensor([latents.shape[1]], dtype=torch.float64)
            total += torch.cat([frames, latents.sum(1), latents.square().sum(1)])
        return total

    def of_sums(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, `[D]` each, from the sums of all shares."""
        frames, total, squares = sums.split([1, self.cache.latent_dim, self.cache.latent_dim])
        mean = total / frames
        return mean.float(), (squares / frames - mean.square()).clamp_min(0).sqrt().float()

    def store(self, mean: Tensor, deviation: Tensor) -> None:
        """Stores a result.

        Raises:
            EncoreError: it cannot be written.
        """
        self.cache.save(self.name, {"mean": mean.numpy(), "deviation": deviation.numpy()})
