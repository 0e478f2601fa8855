"""Updates of weights and what is done with them: factors, subspaces, projections, overlaps and their chance levels."""
