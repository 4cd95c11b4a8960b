"""Models as users of Hugging Face load, save and push them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download

from encore.inference.model_card import CARD_FILE, model_card
from encore.inference.pipeline import ContinuationPipeline
from encore.models.model_folder import CODEC_FILE, CONFIG_FILE, WEIGHTS_FILE
from encore.models.precision import AUTO

M = TypeVar("M", bound="ContinuationModel")
FILES = [WEIGHTS_FILE, CONFIG_FILE, CODEC_FILE, CARD_FILE]


class ContinuationModel(ContinuationPipeline, PyTorchModelHubMixin):
    """A `ContinuationPipeline` that the Hugging Face Hub knows.

        model = ContinuationModel.from_pretrained("user/model")       # or a folder
        model = ContinuationModel.load("checkpoints/best_model.pt")   # a training run's
        model.save_pretrained("folder", model_card_kwargs={"license": "cc-by-4.0"})
        model.push_to_hub("user/model")

    Folders hold safetensors, JSON and a model card; nothing that is loaded runs code. `from_pretrained` also takes
    `device`, `codec_repository` and `precision` of `ContinuationPipeline.load`; `model_card_kwargs` are the arguments
    of `encore.inference.model_card.model_card`. The rest is `huggingface_hub.PyTorchModelHubMixin`'s.
    """

    _card: str | None = None  # of the folder that it was loaded from

    def _save_pretrained(self, save_directory: Path) -> None:
        self.generator.save(save_directory)

    @classmethod
    def _from_pretrained(
        cls: type[M],
        *,
        model_id: str,
        device: str | None = None,
        codec_repository: str | Path | None = None,
        precision: str = AUTO,
        **download: Any,
    ) -> M:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, allow_patterns=FILES, **download))
        model = cls.load(folder, device, codec_repository, precision)
        card = folder / CARD_FILE
        model._card = card.read_text(encoding="utf-8") if card.is_file() else None
        return model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that the model was loaded with; a new one if there was none or something is to be said in it."""
        text = model_card(self.generator, *args, **kwargs) if self._card is None or kwargs else self._card
        return ModelCard(text)
