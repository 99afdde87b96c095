// Facts about the library, for Python. Plain C functions: no tensor, no torch.
#pragma once

#define AVFAST_EXPORT extern "C" __attribute__((visibility("default")))

AVFAST_EXPORT const char* avfast_cpu_isa();                 // instruction set in use
AVFAST_EXPORT bool avfast_force_isa(const char* name);      // "" returns to the best; false if it cannot run here
AVFAST_EXPORT bool avfast_has_isa(const char* name);
AVFAST_EXPORT double avfast_peak_gflops(bool bf16);         // this thread, 10^9 multiplications and additions per second
AVFAST_EXPORT const char* avfast_build_info();              // JSON written by setup.py
AVFAST_EXPORT void avfast_poison_outputs(bool on);          // tests: outputs start as NaN between guards
