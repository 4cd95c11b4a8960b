"""Constants that are first needed in inference mode, and an import without the compiler."""

from __future__ import annotations

import pytest
import torch

import losses
from tests.conftest import Command
from tests.signals import noise


def test_constants_made_in_inference_mode_serve_training() -> None:
    prediction, target = noise((1, 1, 4000), 0)
    # Settings that no other test uses, so that nothing is cached yet.
    parts = [
        losses.MelLoss(24000, n_mels=37),
        losses.STFTLoss(fft_size=510, win_length=501, window="bohman"),
        losses.STFTLoss(scale="chroma", sample_rate=23999),
        losses.STFTLoss(perceptual_weighting=True, sample_rate=23998),
        losses.LoudnessLoss(23997),
    ]
    for loss in parts:
        with torch.inference_mode():
            first = loss(prediction, target)
        prediction.requires_grad_()
        value = loss(prediction, target)
        value.backward()
        assert value.item() == first.item() and prediction.grad is not None and prediction.grad.isfinite().all()
        prediction = prediction.detach()


@pytest.mark.slow
def test_importing_losses_does_not_import_the_compiler(run_program: Command) -> None:
    program = "import sys, losses; losses.create('mel', 24000); print('torch._dynamo' in sys.modules)"
    assert run_program(program).stdout == "False\n"
