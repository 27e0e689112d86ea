"""ONNX needs the extra ``onnx``: without it there is nothing here to collect."""

from importlib.util import find_spec

collect_ignore_glob = [] if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))) else ["test_*.py"]
