// The Python module `seeded`, with which test_emulation.py runs the kernels of seeded.cu.
#include "seeded.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "binding.h"

PYBIND11_MODULE(seeded, module) {
  emulation::bind(module);
  module.def("names", [] {
    std::vector<std::string> names;
    for (const danet::SeededCase& seeded : danet::seeded_cases()) names.push_back(seeded.name);
    return names;
  });
  module.def("run", [](const std::string& name, bool bug) {
    for (const danet::SeededCase& seeded : danet::seeded_cases())
      if (name == seeded.name) return seeded.run(bug);
    throw std::invalid_argument("seeded: no kernel has the name " + name);
  });
}
