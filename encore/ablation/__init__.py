"""Ablations: the same model trained with several weightings or objectives, evaluated and compared."""
