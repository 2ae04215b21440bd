"""Predicts the time of the CUDA kernels on an H100 or H200 from their machine code, without a GPU.

The kernels are compiled by nvcc. An interpreter (``machine``) executes their machine code (SASS, ``sass``) with the
arguments of real calls, and counts the instructions of every warp and the memory transactions (``transactions``). A
model (``model``) computes the time that each resource of the device needs for them; the slowest one is the bottleneck.

``python -m benchmarks.gpu_model`` prints the table. docs/performance_model.md explains it.
"""
