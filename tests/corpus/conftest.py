"""The lane needs packages that ccrewrite doesn't: elsewhere there is nothing here to collect."""

from importlib.util import find_spec

PACKAGES = ("transformers", "monai", "diffusers", "pytorchcv", "pytorch_tcn", "torchvision", "timm")

collect_ignore_glob = [] if all(map(find_spec, PACKAGES)) else ["*.py"]
