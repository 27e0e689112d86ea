"""Helpers without doctests, which import what a machine may lack."""

collect_ignore = ["fake_cuda.py", "interpret_triton.py"]
