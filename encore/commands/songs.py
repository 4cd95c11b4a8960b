"""Training on a folder of songs: the launcher cuts its pairs before any rank starts."""

from __future__ import annotations

from dataclasses import replace

from encore.codecs import load_codec
from encore.config.schema import TrainConfig
from encore.data.songs import is_songs, pairs_of_songs
from encore.errors import EncoreError


def with_pairs(config: TrainConfig) -> TrainConfig:
    """The configuration with a data set in the place of a folder of songs.

    Raises:
        EncoreError: the codec cannot be loaded, or no data set can be made of the songs.
    """
    folder = config.data.dataset_folder
    if folder is None or config.data.dataset_format != "pairs" or not is_songs(folder):
        return config
    if config.run.nnodes != "1":
        raise EncoreError(
            f"--dataset_folder {folder}: a folder of songs, and each of several machines would cut it; prepare it once "
            f"before: python prepare_data.py {folder} --output PAIRS"
        )
    codec = load_codec(config.codec.name, config.codec.repository, config.codec.bandwidth)
    pairs = pairs_of_songs(folder, config.data.cache_dir, codec.sample_rate, codec.channels, print)
    return replace(config, data=replace(config.data, dataset_folder=pairs))
