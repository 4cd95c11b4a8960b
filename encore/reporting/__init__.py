"""Reports: pages, plots and spectrograms, as files that need no network."""
