"""The layers that folding leaves where torch's own don't do."""
