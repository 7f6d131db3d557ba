"""Train the vision transformer on the digits and write data/models/digits_vit.*.

Run: python data/training/train_digits_vit.py
"""

from architectures import DigitsViT
from training import ClassifierRecipe, start, train_classifier, write_classifier

RECIPE = ClassifierRecipe(epochs=100, peak_learning_rate=1e-3, weight_decay=0.1, averaging_decay=0.99)


def main() -> None:
    start(RECIPE.seed)
    model = DigitsViT()
    seconds = train_classifier(model, RECIPE)
    write_classifier("digits_vit", model, seconds, RECIPE, keep_batchnorm=False)


if __name__ == "__main__":
    main()
