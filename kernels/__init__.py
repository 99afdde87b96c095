"""Kernel arithmetic, one folder per op family; no torch header in C++ or CUDA. See README.md beside this file."""
