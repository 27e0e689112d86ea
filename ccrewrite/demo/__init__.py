"""A small segmentation network with trained weights, and the run that rewrites it (``ccrewrite demo``)."""
