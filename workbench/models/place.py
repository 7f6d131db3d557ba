"""Where an ONNX file that the workbench writes is put: a folder of the user's choice, or the store."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from workbench.errors import LoadError
from workbench.graph import files
from workbench.machine import disk, leftovers
from workbench.machine.store import Store


@dataclass(frozen=True)
class Place:
    """Keeps models in `folder`, or where that is None in `store` (the default store where that is None too)."""

    folder: Path | None = None
    store: Store | None = None

    def keep(self, proto: onnx.ModelProto, name: str) -> Path:
        """Write the model whole or not at all; large weights go to `<name>.onnx.data` beside it.

        Args:
            proto: with all its weights loaded; large ones are emptied by writing.
            name: of the model; other characters than letters, digits, dot, dash become an underscore.

        Returns:
            The ONNX file.

        Raises:
            LoadError: the folder cannot be written.
            StoreError: the store cannot be written.
        """
        stem = re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"
        with self.scratch() as scratch:
            written = scratch / stem
            disk.folder(written)
            file = written / f"{stem}.onnx"
            external = files.is_large(proto)
            files.save(proto, file)
            if self.folder is not None:
                return _move_all(written, self.folder) / file.name
            store = self.store or Store()
            return store.add(written)[1] / file.name if external else store.add(file)[1]

    def keep_file(self, file: Path) -> Path:
        """Move a finished file, made in `scratch()`, to where models are kept.

        Raises:
            StoreError: the store cannot be written.
        """
        if self.folder is not None:
            return file.replace(self.folder / file.name)
        return (self.store or Store()).add(file)[1]

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder in the file system where the model will be, removed at the end.

        Raises:
            LoadError: `folder` cannot be written.
        """
        if self.folder is None:
            with (self.store or Store()).scratch() as scratch:
                yield scratch
            return
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                made = stack.enter_context(leftovers.working(self.folder, ".writing-"))
            except OSError as error:
                raise LoadError(f"Cannot write into {self.folder}: {error}. Pass another folder=...") from error
            yield made


def _move_all(source: Path, target: Path) -> Path:
    # Weights first: a graph whose weights are still on their way would be a broken model.
    for file in sorted(source.iterdir(), key=lambda item: item.suffix == ".onnx"):
        file.replace(target / file.name)
    return target
