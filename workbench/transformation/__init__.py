"""A recipe made real: its steps applied to a model, after observing the activations that they need."""
