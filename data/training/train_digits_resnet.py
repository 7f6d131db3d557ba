"""Train the residual CNN on the digits and write data/models/digits_resnet.*.

Run: python data/training/train_digits_resnet.py
"""

from architectures import DigitsResNet
from training import ClassifierRecipe, start, train_classifier, write_classifier

RECIPE = ClassifierRecipe(epochs=20, peak_learning_rate=5e-3)


def main() -> None:
    start(RECIPE.seed)
    model = DigitsResNet()
    seconds = train_classifier(model, RECIPE)
    write_classifier("digits_resnet", model, seconds, RECIPE, keep_batchnorm=True)


if __name__ == "__main__":
    main()
