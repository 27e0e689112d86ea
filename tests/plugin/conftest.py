"""``package`` is a package of somebody else's. What is in ``inside`` runs where it is installed (``test_plugin.py``)."""

from importlib.util import find_spec

collect_ignore = ["package"] if find_spec("turned") else ["package", "inside"]
