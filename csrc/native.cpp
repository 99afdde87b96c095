// avfast._native: introspection for Python. It never sees a tensor; the ops work without it.
#include <pybind11/pybind11.h>

#include <string>

#include "introspect.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Instruction set and build facts of libavfast.";
  m.def("cpu_isa", [] { return std::string(avfast_cpu_isa()); }, "Instruction set of the CPU kernels in use.");
  m.def("has_isa", [](const std::string& name) { return avfast_has_isa(name.c_str()); }, pybind11::arg("name"));
  m.def(
      "force_isa",
      [](const std::string& name) {
        if (!avfast_force_isa(name.c_str()))
          throw pybind11::value_error("avfast: instruction set: expected one this machine has (base, avx2, avx512), got " + name);
      },
      pybind11::arg("name"), "Force an instruction set, for tests; an empty name returns to the best.");
  m.def(
      "poison_outputs", [](bool on) { avfast_poison_outputs(on); }, pybind11::arg("on"),
      "For tests: outputs start as NaN (or -1), with guards on both sides.");
  m.def("build_info", [] { return std::string(avfast_build_info()); }, "JSON: compiler, flags, CUDA, torch headers.");
}
