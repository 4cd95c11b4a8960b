"""Why some values of an evaluation should not be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from encore.data.dataset import Batch
from encore.evaluation.baselines import MODEL, NEGATIVES, Continuer
from encore.evaluation.dataset import VAL, EvalSet
from encore.evaluation.independence import candidates_depend
from encore.evaluation.metrics.critic import CRITIC
from encore.evaluation.metrics.distribution import frechet_warning
from encore.statistics import ENOUGH_RECORDINGS, Interval

ENOUGH_PAIRS = 50


def warnings_of(data: EvalSet, features: Mapping[str, Tensor]) -> list[str]:
    """Why some values should not be trusted; `features` are those of the truths, `[items, P, F]` by space."""
    pairs, recordings = len(data), len(set(data.recordings))
    found = []
    if data.split == VAL:
        found.append(
            "judged on validation pairs, on which best_model.pt was chosen, so its figures are too good; test pairs of "
            "recordings of their own are fairer (--split test)"
        )
    if pairs < ENOUGH_PAIRS:
        found.append(f"{pairs} pairs are few: below {ENOUGH_PAIRS} most differences between systems are chance")
    if not data.recordings_known:
        found.append(
            "the recordings are unknown (no metadata.csv of prepare_data.py): every pair is taken for a recording of "
            "its own, so intervals may be too narrow, and other_music may be of the same recording"
        )
    elif recordings < 2:
        found.append("all pairs are of one recording: there are no intervals, and there is no other music")
    elif recordings < ENOUGH_RECORDINGS:
        found.append(f"{recordings} recordings are few: intervals over recordings are rough below {ENOUGH_RECORDINGS}")
    for space, patches in features.items():
        warning = frechet_warning(patches, patches)
        if warning is not None:
            found.append(f"{space} features: {warning}")
    return found


def dependence_warnings(continuers: Iterable[Continuer], batch: Batch) -> list[str]:
    """A warning for each continuer whose candidates depend on each other."""
    return [
        f"{continuer.name}: its candidates depend on each other (one drawn alone differs from the same one drawn with "
        "others), so its energy scores and skills are too good; draw each from its own generator"
        for continuer in continuers
        if candidates_depend(continuer, batch)
    ]


def critic_warnings(values: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """A warning if the critic took what nobody would take for music to be truer than the model."""
    if CRITIC not in values[MODEL]:
        return []
    mine = values[MODEL][CRITIC].value
    missed = [name for name in NEGATIVES if name in values and values[name][CRITIC].value < mine]
    if not missed:
        return []
    return [
        f"the critic tells {' and '.join(missed)} from real music less well than the model (AUC {mine:.2f}): it has "
        "learned too little from these pairs, or the model gives itself away; see the headline's other figures"
    ]
