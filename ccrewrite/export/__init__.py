"""Models out of PyTorch: ``ccrewrite.export.onnx``."""
