"""Write or verify data/checksums.json, the sha256 of every data and model file.

Run: python data/training/checksums.py [--verify] [--data FOLDER]
"""

import argparse
import hashlib
import json
from pathlib import Path

DATA_DIR = Path(__file__).resolve().parents[1]


def measure(data: Path) -> dict[str, str]:
    """Return {path below `data`: sha256} of the arrays and of everything in models/."""
    paths = [*data.glob("*.npz"), *(path for path in (data / "models").rglob("*") if path.is_file())]
    return {path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def differences(stored: dict[str, str], measured: dict[str, str]) -> list[str]:
    """Return one line for each file that is missing, unknown or changed."""
    lines = [f"missing: {path}" for path in stored.keys() - measured.keys()]
    lines += [f"not in checksums.json: {path}" for path in measured.keys() - stored.keys()]
    lines += [f"changed: {path}" for path in stored.keys() & measured.keys() if stored[path] != measured[path]]
    return sorted(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="compare instead of writing; exit 1 on a difference")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="the data folder")
    options = parser.parse_args()
    table, measured = options.data / "checksums.json", measure(options.data)
    if not options.verify:
        table.write_text(json.dumps(measured, indent=2) + "\n")
        print(f"{len(measured)} files in {table}")
        return
    found = differences(json.loads(table.read_text()), measured)
    if found:
        raise SystemExit("\n".join(found))
    print(f"{len(measured)} files as in {table}")


if __name__ == "__main__":
    main()
