"""Why a variant takes the time it takes and loses what it loses: evidence, and rules that judge it."""
