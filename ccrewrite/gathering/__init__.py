"""Sums of gathered samples, written so that torch.compile fuses them: what learnable layers and folded ones have in common."""
