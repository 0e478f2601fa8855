"""Training with Lightning: modules, data, strategies, the run folder and the export."""
