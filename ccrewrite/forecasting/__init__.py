"""What learned geometry would gain, and cost, before anything is rewritten: ``ccrewrite.forecast``."""
