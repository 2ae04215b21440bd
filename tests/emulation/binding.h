// The Python interface of the emulator, for the modules `danet_emulated` and `seeded`.
#pragma once

#include <pybind11/pybind11.h>

namespace emulation {

// Adds the emulator's settings and records to a Python module.
void bind(pybind11::module_& module);

}  // namespace emulation
