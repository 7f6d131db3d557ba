"""Read Python's own standard library as text and write data/stdlib_text.npz: fixed windows of held-out token ids.

Needs the tokenizer of data/models/stdlib_llama, so train_stdlib_llama.py calls `write_windows` once it has made one.
Files are split by the md5 of their path, so training, calibration and evaluation never share a file; files with the
same content as an earlier one are dropped. Run alone: python data/training/make_stdlib_text.py
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from training import DATA_DIR, MODELS_DIR, savez_reproducible

WINDOW_TOKENS = 128
WINDOWS = {"calibration": 128, "evaluation": 320}
# Not read: test suites (long tables of literals), generated or vendored files, and what pip put there.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "pydoc_data", "encodings"}
LARGEST_FILE_BYTES = 200_000
PROMPTS = 8


def library_files() -> dict[str, str]:
    """Return {path below the standard library: text} of the running interpreter, sorted, without duplicates."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, str] = {}
    hashes: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS & set(name.parts) or not 0 < path.stat().st_size < LARGEST_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest not in hashes:
            hashes.add(digest)
            texts[name.as_posix()] = text
    return texts


def part_of(name: str) -> str:
    """Return `calibration` (1 file in 20), `evaluation` (2 in 20) or `train`, from the md5 of the path."""
    bucket = int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 20
    return {0: "calibration", 1: "evaluation", 2: "evaluation"}.get(bucket, "train")


def read_part(part: str) -> dict[str, str]:
    """Return the files of one part."""
    return {name: text for name, text in library_files().items() if part_of(name) == part}


def windows(tokenizer: Any, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Take evenly spaced windows from the files of one part; none crosses a file's end.

    Returns:
        Token ids (windows, WINDOW_TOKENS) int32; the number of UTF-8 bytes that tokens 1.. of each window stand for
        (windows,) int32; and the file name of each window.
    """
    rows: list[tuple[list[int], str]] = []
    for name, text in read_part(part).items():
        ids = tokenizer(text)["input_ids"]
        rows += [(ids[i : i + WINDOW_TOKENS], name) for i in range(0, len(ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS)]
    distinct = list({tuple(ids): (ids, name) for ids, name in rows}.values())
    if len(distinct) < WINDOWS[part]:
        raise SystemExit(f"{part}: {len(distinct)} windows in the standard library, {WINDOWS[part]} needed.")
    chosen = [distinct[i] for i in np.linspace(0, len(distinct) - 1, WINDOWS[part]).astype(int)]
    # A byte-level token is written with one character a byte.
    lengths = [sum(map(len, tokenizer.convert_ids_to_tokens(ids[1:]))) for ids, _ in chosen]
    return np.array([ids for ids, _ in chosen], np.int32), np.array(lengths, np.int32), [n for _, n in chosen]


def prompts() -> list[str]:
    """Return the first lines, up to a body, of functions from held-out evaluation files."""
    found: list[str] = []
    for text in read_part("evaluation").values():
        lines = text.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("def ") and line.endswith("):")]
        if starts:
            found.append("\n".join(lines[starts[0] : starts[0] + 2]) + "\n")
    return found[:: max(1, len(found) // PROMPTS)][:PROMPTS]


def write_windows(tokenizer: Any) -> None:
    """Write data/stdlib_text.npz, stopping if calibration and evaluation share a file or a window."""
    arrays: dict[str, np.ndarray] = {}
    for part in WINDOWS:
        ids, lengths, names = windows(tokenizer, part)
        arrays |= {part: ids, f"{part}_bytes": lengths, f"{part}_files": np.array(names)}
    seen = [{row.tobytes() for row in arrays[part]} for part in WINDOWS]
    if seen[0] & seen[1] or set(arrays["calibration_files"]) & set(arrays["evaluation_files"]):
        raise SystemExit("Calibration and evaluation share a window or a file.")
    savez_reproducible(DATA_DIR / "stdlib_text.npz", arrays | {"prompts": np.array(prompts())})


def main() -> None:
    from transformers import AutoTokenizer

    write_windows(AutoTokenizer.from_pretrained(MODELS_DIR / "stdlib_llama", local_files_only=True))


if __name__ == "__main__":
    main()
