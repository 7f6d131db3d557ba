"""From engines to raw values: latencies in turns, and answers beside those of the parent. Judges nothing."""
