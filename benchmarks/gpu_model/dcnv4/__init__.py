"""Predicts the time of ``danet.ops.dcnv4`` and of DCNv4's own kernels, from the machine code of both.

``python -m benchmarks.gpu_model.dcnv4 PATH`` prints the table; PATH is a checkout of
https://github.com/OpenGVLab/DCNv4. Nothing of DCNv4 is part of this repository.
"""
