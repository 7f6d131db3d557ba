"""From raw records to verdicts: intervals, ratios, changes of the score, the front, budgets, what is best. Runs nothing."""
