"""What is measured, by name: the title, the group, a sentence about it, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GOALS = {
    "low": "lower is better",
    "high": "higher is better",
    "zero": "0 is best",
    "one": "1 is best",
    "truth": "the truth’s is best",
}
SHORT = {"spectral_energy": "spectral", "mel": "log-mel", "log_mel": "log-mel", "codec": "codec"}


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    Attributes:
        name: in the JSON and of the metrics.
        title: above the column.
        group: heading of the table that it belongs to.
        note: what it is, in a sentence, with its unit.
        goal: what is best, a key of `GOALS`; None where no value is better than another.
    """

    name: str
    title: str
    group: str
    note: str
    goal: str | None = None


def catalogue(scores: Sequence[str], losses: Mapping[str, str], spaces: Sequence[str], seconds: float) -> list[Measure]:
    """Every measure, in the order of the tables.

    Args:
        scores: names of the distances that the energy score is taken under.
        losses: what a loss to the truth is, by its name.
        spaces: features in which distributions are compared.
        seconds: length of the long continuations.
    """
    drift = f"Drift over {seconds:g} s"
    found = [
        *(
            Measure(f"skill_{n}", _short(n), "Skill", f"1 − score / score of the replay, {_short(n)} distance.", "high")
            for n in scores
        ),
        *(
            Measure(
                f"energy_score_{n}",
                _short(n),
                "Energy score",
                f"Mean distance to the truth less half of that between two candidates, {_short(n)} distance.",
                "low",
            )
            for n in scores
        ),
        *(
            Measure(
                f"diversity_{n}",
                _short(n),
                "Diversity",
                f"Mean distance between two candidates, {_short(n)} distance; the score subtracts half of it.",
            )
            for n in scores
        ),
        *(
            Measure(
                f"kernel_distance_{n}",
                f"kernel, {_short(n)}",
                "Distribution",
                f"Kernel audio distance (MMD, unbiased, × 100) to real music, {_short(n)} features.",
                "zero",
            )
            for n in spaces
        ),
        *(
            Measure(
                f"frechet_{n}",
                f"Fréchet, {_short(n)}",
                "Distribution",
                f"Fréchet distance to real music, {_short(n)} features.",
                "zero",
            )
            for n in spaces
        ),
        Measure(
            "patch_distance",
            "patch distance",
            "Distribution",
            "Energy distance between half-second log-mel patches and those of real music, nepers.",
            "zero",
        ),
        Measure("level_db", "level, dB", "Sound", "Level of the whole continuation less the truth’s, dB.", "zero"),
        Measure(
            "centroid_octaves",
            "centroid, oct.",
            "Sound",
            "Mean spectral centroid against the truth’s, octaves.",
            "zero",
        ),
        Measure(
            "texture_ratio",
            "texture",
            "Sound",
            "Deviation over time of log-mel bands, as a ratio to the truth’s.",
            "one",
        ),
        Measure(
            "seam_flux",
            "seam flux, %",
            "Sound",
            "Spectral flux at the join, as a percentile of that inside the real music.",
            "truth",
        ),
        Measure(
            "seam_step",
            "seam step, %",
            "Sound",
            "Level step at the join, as a percentile of those inside the real music.",
            "truth",
        ),
        Measure("onset_rate", "onsets/s", "Music", "Onsets per second.", "truth"),
        Measure("pulse_context", "pulse", "Music", "Agreement of the pulse with the context’s, 0 to 1.", "truth"),
        Measure(
            "chroma_context",
            "chroma, context",
            "Music",
            "Similarity of pitch classes with the context’s, −1 to 1.",
            "truth",
        ),
        Measure(
            "chroma_truth",
            "chroma, truth",
            "Music",
            "Similarity of pitch classes with the truth’s, moment by moment, −1 to 1.",
            "high",
        ),
        Measure(
            "repetition",
            "repetition",
            "Music",
            "Greatest similarity with the context repeated at one lag: 1 for a loop.",
            "truth",
        ),
        Measure("memorisation", "memorisation", "Music", MEMORISATION, "one"),
        *(
            Measure(
                f"drift_{name}",
                name,
                drift,
                f"Change of {what} from start to end of a long continuation, as a fraction: 0.2 is 20% more.",
                "zero",
            )
            for name, what in (("level", "amplitude"), ("centroid", "spectral centroid"), ("texture", "texture"))
        ),
        *(Measure(f"mean_{n}", n, "Losses to the truth, mean of the candidates", w, "low") for n, w in losses.items()),
        *(Measure(f"best_{n}", n, "Losses to the truth, best candidate", w, "low") for n, w in losses.items()),
    ]
    return found


MEMORISATION = "Distance to the nearest training music, as a ratio to that of held-out real music: 0 is copied."


def _short(name: str) -> str:
    return SHORT.get(name, name)
