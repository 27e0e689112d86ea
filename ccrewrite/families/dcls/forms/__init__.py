"""Other ways of evaluating a DCLS convolution than building its kernel: ATen code, to be compiled by Inductor."""
