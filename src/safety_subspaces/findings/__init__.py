"""What the tables of one or more studies say: differences, intervals, tests and verdicts."""
