"""From raw records to verdicts: intervals, ratios, score changes, the Pareto front, budgets, what is best. Runs nothing."""
