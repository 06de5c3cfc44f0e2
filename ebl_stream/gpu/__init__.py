"""The accumulation on a CUDA device.

Plans, weights and tables are those of the CPU; only ``kernels.cu`` differs. Nothing
here is imported before somebody asks for a GPU, and a machine without one needs
neither CuPy nor a compiler.
"""
