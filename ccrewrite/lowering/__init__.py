"""From a rewritten model to a compiled one, every site in its cheapest form."""
