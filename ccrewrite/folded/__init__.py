"""The layers that folding leaves where torch's own don't do: plain convolutions whose geometry is a constant.

They know no family. What they need comes as plain data: cut kernels, the places of taps, a matrix.
"""
