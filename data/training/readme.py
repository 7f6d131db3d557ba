"""Write the tables of data/README.md from the cards in data/models/ and from data/checksums.json.

Only the lines between the two `measured` marks are replaced. Run: python data/training/readme.py [--verify] [--data FOLDER]
"""

import argparse
import json
from pathlib import Path
from typing import Any

DATA_DIR = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def accuracy(metric: dict[str, Any]) -> str:
    low, high = metric["wilson_95"]
    return f"{100 * metric['value']:.2f} % ({metric['correct']}/{metric['total']}, 95 % {100 * low:.2f} to {100 * high:.2f})"


def result(card: dict[str, Any]) -> str:
    """Describe a card's held-out result."""
    metrics = card["metrics"]
    if "evaluation_accuracy" in metrics:
        return f"accuracy {accuracy(metrics['evaluation_accuracy'])}"
    if "image_to_caption_top_1" in metrics:
        return (
            f"image to caption, top 1 of {metrics['held_out_captions']}: {accuracy(metrics['image_to_caption_top_1'])}; "
            f"caption to image, top 1 of {metrics['image_to_caption_top_1']['total']}: "
            f"{accuracy(metrics['caption_to_image_top_1'])}"
        )
    return (
        f"perplexity {metrics['evaluation_perplexity_per_token']:.2f} per token, "
        f"{metrics['evaluation_bits_per_byte']:.3f} bits per byte "
        f"({metrics['evaluation_windows']} windows, {metrics['evaluation_predicted_tokens']} predicted tokens)"
    )


def tables(data: Path) -> str:
    """Return the two Markdown tables: one line a model, one line a file."""
    cards = [json.loads(path.read_text()) for path in sorted((data / "models").glob("*.card.json"))]
    lines = ["| model | parameters | held-out result | training | made by |", "|---|---:|---|---|---|"]
    for card in cards:
        training = (
            f"{card['training_seconds']:.0f} s, seed {card['training']['seed']}, "
            f"{card['machine']['threads']} thread of {card['machine']['processor']}"
        )
        lines.append(
            f"| `{card['name']}` | {card['parameters']:,} | {result(card)} | {training} | `{card['script']}` |"
        )
    lines += ["", "| file | bytes | sha256 |", "|---|---:|---|"]
    checksums = json.loads((data / "checksums.json").read_text())
    sizes = {path: (data / path).stat().st_size for path in checksums}
    lines += [f"| `{path}` | {sizes[path]:,} | `{digest}` |" for path, digest in checksums.items()]
    lines += ["", f"Together {sum(sizes.values()):,} bytes."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="compare instead of writing; exit 1 on a difference")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="the data folder")
    options = parser.parse_args()
    page = options.data / "README.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} lacks the lines {BEGIN} and {END}; put them where the tables belong.")
    new = f"{before}{BEGIN}\n{tables(options.data)}\n{END}{after}"
    if options.verify and new != text:
        raise SystemExit(f"The tables of {page} are out of date. Run: python data/training/readme.py")
    page.write_text(new)


if __name__ == "__main__":
    main()
