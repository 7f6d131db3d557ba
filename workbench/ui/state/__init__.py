"""What the app knows and does, part by part, without widgets."""
