"""Files and folders of this machine, one folder at a time, to choose a path from instead of typing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from traitlets import Bool, HasTraits, Tuple, Unicode

from workbench.errors import LoadError
from workbench.reports import formats

_MOST_ENTRIES = 500


class Browsing(HasTraits):
    """A list of one folder's entries.

    Attributes:
        is_open: whether the list is shown.
        folder: whose entries are listed.
        entries: (what the list says, path), folders first.
        words: what is left out.

    Args:
        suffixes: of the files that can be chosen now; empty where a folder is wanted.
        take: called with a path that was chosen.
    """

    is_open = Bool(False)
    folder = Unicode()
    entries = Tuple()
    words = Unicode()

    def __init__(self, suffixes: Callable[[], tuple[str, ...]], take: Callable[[str], None]) -> None:
        super().__init__()
        self._suffixes, self._take = suffixes, take

    def toggle(self) -> None:
        """Show the list, or hide it."""
        if not self.is_open:
            self.show(self.folder or str(Path.cwd()))
        self.is_open = not self.is_open

    def show(self, folder: str) -> None:
        """List a folder.

        Raises:
            LoadError: it cannot be read.
        """
        place = Path(folder).expanduser().resolve()
        try:
            with os.scandir(place) as found:
                names = sorted((item for item in found if not item.name.startswith(".")), key=_order)
        except OSError as error:
            raise LoadError(f"The folder {place} cannot be listed: {error.strerror}. Choose another one.") from error
        wanted = self._suffixes()
        kept = [item for item in names if _is_folder(item) or item.name.lower().endswith(wanted or ("\0",))]
        lines = [("..  (the folder above)", str(place.parent))] if place.parent != place else []
        lines += [(_label(item), item.path) for item in kept[:_MOST_ENTRIES]]
        hidden = len(names) - min(len(kept), _MOST_ENTRIES)
        of = f"that are no {' or '.join(wanted)}" if wanted else "files"
        self.folder, self.entries = str(place), tuple(lines)
        self.words = f"{place}" + (f" (not shown: {hidden} {of})" if hidden else "")

    def choose(self, path: str | None) -> None:
        """Go into a folder, or take a file.

        Raises:
            LoadError: nothing is selected, or the folder cannot be read.
        """
        if path is None:
            raise LoadError("Nothing is selected in the list. Select a file or a folder in it.")
        if Path(path).is_dir():
            self.show(path)
        else:
            self._take(path)
            self.is_open = False

    def use_folder(self) -> None:
        """Take the folder whose entries are listed."""
        self._take(self.folder)
        self.is_open = False


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _order(item: os.DirEntry[str]) -> tuple[bool, str]:
    return not _is_folder(item), item.name.lower()


def _label(item: os.DirEntry[str]) -> str:
    if _is_folder(item):
        return f"{item.name}/"
    try:
        return f"{item.name}  ({formats.size(item.stat().st_size)})"
    except OSError:
        return item.name
