"""Neither file holds tests or doctests."""

collect_ignore = ["make.py", "models.py"]
