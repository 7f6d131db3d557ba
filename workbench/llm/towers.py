"""Two towers, one for images and one for texts, lowered each by its own calibration table and judged together.

Each tower goes through `workbench.run` as a model of its own; what this adds is the joint answer: which text lies
nearest to an image, for every pair of lowered towers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import datasets, zoo
from workbench.datasets import Dataset, Split
from workbench.datasets.metrics import top1
from workbench.engines import jobs
from workbench.errors import DataError
from workbench.judging import accuracy, statistics
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import load
from workbench.recipes import Recipe
from workbench.records import Accuracy, BuildOptions, Engine, Model, Protocol
from workbench.study import Study, run
from workbench.study.progress import Listener

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TwoTowers:
    """Two models whose embeddings are compared, and their data.

    Attributes:
        images, texts: models with one output each, embeddings (N, E) of length 1.
        image_data: evaluation images with their class as label; calibration images.
        text_data: the texts to choose from, with the class each describes as label; calibration texts.
    """

    images: Model
    texts: Model
    image_data: Dataset
    text_data: Dataset


@dataclass(frozen=True)
class TowerStudies:
    """What was found out about both towers.

    Attributes:
        image_study, text_study: a whole study of each tower, with its own calibration table, engines and latencies.
        joint: recipe's name -> how often the nearest text names the image's class, beside the FP32 pair.
    """

    image_study: Study
    text_study: Study
    joint: dict[str, Accuracy]

    def table(self) -> pd.DataFrame:
        """Return one row a recipe: the joint score and its change, both calibration tables, sizes and latencies."""
        import pandas as pd

        return pd.DataFrame([self._row(name, found) for name, found in self.joint.items()])

    def _row(self, name: str, found: Accuracy) -> dict[str, Any]:
        score = statistics.score_interval(found)
        row: dict[str, Any] = {
            "Recipe": name,
            "Image to text top-1 (%)": "-" if score is None else f"{100 * score.value:.2f}",
            "Change": statistics.accuracy_change(found).words,
        }
        for tower, study in (("image", self.image_study), ("text", self.text_study)):
            item = study[name]
            table = None if item.variant is None else item.variant.calibration_sha256
            row[f"Calibration table ({tower})"] = "-" if table is None else table[:8]
            row[f"Size ({tower}, MB)"] = None if item.engine is None else round(item.engine.size_bytes / 1e6, 2)
            measured = item.measurement
            row[f"Latency ({tower}, ms)"] = (
                None if measured is None else round(statistics.summary(measured).median * 1e3, 3)
            )
        return row


def digits_captions(store: Store | None = None) -> TwoTowers:
    """Return the shipped towers: images of digits, and captions from templates that they were never trained on.

    Texts are calibrated with the captions of the training templates.

    Raises:
        LoadError: the data folder is missing or damaged.
    """
    written = json.loads(zoo.data_file("models/digits_captions/vocabulary.json").read_text(encoding="utf-8"))
    texts, labels = _captions(written["held_out_templates"], written)
    seen, _ = _captions(written["templates"], written)
    return TwoTowers(
        load("digits_captions/image_tower", store=store),
        load("digits_captions/text_tower", store=store),
        datasets.digits(),
        Dataset("captions", "shipped", Split({"": texts}, labels), Split({"": seen})),
    )


def run_towers(
    towers: TwoTowers,
    recipes: Sequence[str | Recipe] = ("fp32", "int8-max"),
    *,
    backend: str = "auto",
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    store: Store | None = None,
    progress: Listener | None = None,
    handle: Handle = QUIET,
) -> TowerStudies:
    """Run a study of each tower under the same recipes, then judge each recipe's pair of towers together.

    Args:
        recipes, backend, protocol, options, store, progress: as for `workbench.run`; the first recipe is the
            baseline, and the parent of the joint comparison.

    Raises:
        DataError: a tower's data have no labels, or embeddings of different widths.
        WorkbenchError: whatever `workbench.run` raises.
    """
    for data in (towers.image_data, towers.text_data):
        if data.evaluation.labels is None:
            raise DataError(f"{data.name} has no labels: which text is right for which image? Pass the classes.")
    store = store or Store()
    baseline = recipes[0] if isinstance(recipes[0], str) else recipes[0].name
    studies = [
        run(
            model,
            # The class is a label of the pair; a tower alone gives embeddings, which no label fits.
            Dataset(data.name, data.kind, Split(data.evaluation.inputs), data.calibration, None, data.show),
            recipes,
            backend=backend,
            protocol=protocol,
            options=options,
            baseline=baseline,
            store=store,
            progress=progress,
            cancel=handle.cancelled,
        )
        for model, data in ((towers.images, towers.image_data), (towers.texts, towers.text_data))
    ]
    return TowerStudies(studies[0], studies[1], _joint(towers, studies[0], studies[1], baseline, handle))


def class_scores(images: np.ndarray, texts: np.ndarray, text_classes: np.ndarray, classes: int) -> np.ndarray:
    """Return for each image the similarity of the nearest text of each class, (N, classes); -inf for a class without.

    Args:
        images, texts: embeddings (N, E) and (M, E) of length 1.
        text_classes: the class that each text describes, (M,).

    Raises:
        DataError: the embeddings differ in width.
    """
    if images.shape[-1] != texts.shape[-1]:
        raise DataError(
            f"Image embeddings {images.shape} and text embeddings {texts.shape} have different widths, so they are no pair."
        )
    similarity = images @ texts.T
    scores = np.full((len(images), classes), -np.inf, similarity.dtype)
    for index in range(classes):
        if (text_classes == index).any():
            scores[:, index] = similarity[:, text_classes == index].max(axis=1)
    return scores


def _joint(
    towers: TwoTowers, image_study: Study, text_study: Study, baseline: str, handle: Handle
) -> dict[str, Accuracy]:
    image_classes = np.asarray(towers.image_data.evaluation.labels)
    text_classes = np.asarray(towers.text_data.evaluation.labels)
    classes = int(max(image_classes.max(), text_classes.max())) + 1
    images, texts = towers.image_data.bound_to(towers.images), towers.text_data.bound_to(towers.texts)

    def scores(name: str) -> np.ndarray | None:
        engines = (image_study[name].engine, text_study[name].engine)
        if engines[0] is None or engines[1] is None:
            return None  # its failure is in the tower's study
        pictures, words = _embeddings(engines[0], images, handle), _embeddings(engines[1], texts, handle)
        return class_scores(pictures, words, text_classes, classes)

    parent = scores(baseline)
    found = {}
    for result in image_study.record.results:
        ours = parent if result.recipe.name == baseline else scores(result.recipe.name)
        if ours is None or parent is None:
            continue
        found[result.recipe.name] = accuracy.compare_outputs(
            {"scores": ours},
            {"scores": parent},
            image_classes,
            top1(),
            variant=result.recipe.name,
            backend=image_study.record.backend,
            data_name=f"{towers.image_data.name} with {towers.text_data.name}",
            data_kind=towers.image_data.kind,
        )
    return found


def _embeddings(engine: Engine, data: Dataset, handle: Handle) -> np.ndarray:
    return next(iter(jobs.infer(engine, data.evaluation.inputs, 64, handle=handle).values()))


def _captions(templates: Sequence[str], written: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids (captions, tokens) int64 and the digit that each caption names."""
    ids, digits = [], []
    for template in templates:
        for digit, name in enumerate(written["names"]):
            words = template.format(name=name, figure=digit).split()
            row = [written["words"].get(word, written["words"]["<unknown>"]) for word in words]
            ids.append(row + [written["words"]["<pad>"]] * (written["tokens"] - len(row)))
            digits.append(digit)
    return np.array(ids, np.int64), np.array(digits, np.int64)
