"""CC layers in ONNX files, at output sizes that are known when the file runs: ``ccrewrite::CCConv``.

``form`` says what a layer becomes, ``operator`` puts its axes together. Of one axis, ``axis`` has what is known at export,
``resampling`` computes where its outputs look, ``padding`` what is beyond its ends, ``kernel`` what the samples contribute, and
``bands`` the sums. All of it is what the modules of the same names in ``ccrewrite.families.cc`` do in torch.
"""
