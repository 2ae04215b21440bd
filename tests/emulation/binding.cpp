// The Python interface of the emulator: settings, launches, reports of the checker, and traces of memory accesses.
#include "binding.h"

#include <dlfcn.h>
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>

#include "checker.h"
#include "emulation.h"

namespace py = pybind11;

namespace emulation {
namespace {

std::array<unsigned, 3> sizes(const dim3& size) { return {size.x, size.y, size.z}; }

// The offset of a kernel in this library, by which Python finds its name.
uint64_t offset_of(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) ? uint64_t(static_cast<const char*>(kernel) - static_cast<char*>(info.dli_fbase)) : 0;
}

// The layout of AccessRecord. Not PYBIND11_NUMPY_DTYPE, which registers a type only once for all modules of a process.
py::dtype record_dtype() {
  py::list names, formats, offsets;
  auto add = [&](const char* name, const py::dtype& format, size_t offset) {
    names.append(name), formats.append(format), offsets.append(offset);
  };
#define FIELD(name) add(#name, py::dtype::of<decltype(AccessRecord::name)>(), offsetof(AccessRecord, name))
  FIELD(address), FIELD(block), FIELD(site), FIELD(bytes), FIELD(thread), FIELD(kind), FIELD(shared);
#undef FIELD
  return py::dtype(names, formats, offsets, sizeof(AccessRecord));
}

// Gives the accesses since the last call to Python. The array owns the recorded memory: nothing is copied.
py::array trace_as_array() {
  auto* trace = new std::vector<AccessRecord>(take_trace());
  const py::capsule owner(trace, [](void* p) { delete static_cast<std::vector<AccessRecord>*>(p); });
  return py::array(record_dtype(), {py::ssize_t(trace->size())}, {}, trace->data(), owner);
}

}  // namespace

// All types are local to the module, so that one process can load several modules.
void bind(py::module_& module) {
  using Local = py::module_local;
  py::class_<LaunchRecord>(module, "LaunchRecord", Local())
      .def_readonly("op", &LaunchRecord::op)
      .def_property_readonly("kernel_offset", [](const LaunchRecord& r) { return offset_of(r.kernel); })
      .def_property_readonly("grid", [](const LaunchRecord& r) { return sizes(r.sizes.grid); })
      .def_property_readonly("block", [](const LaunchRecord& r) { return sizes(r.sizes.block); })
      .def_property_readonly("shared_bytes", [](const LaunchRecord& r) { return r.sizes.shared_bytes; })
      .def_property_readonly("cluster", [](const LaunchRecord& r) { return r.sizes.cluster; })
      .def_property_readonly("programmatic", [](const LaunchRecord& r) { return r.sizes.programmatic; })
      .def_property_readonly("parameters", [](const LaunchRecord& r) {
        return py::bytes(static_cast<const char*>(r.parameters), r.parameter_bytes);
      });

  py::class_<Settings>(module, "Settings", Local())
      .def_readwrite("seed", &Settings::seed)
      .def_readwrite("shared_limit", &Settings::shared_limit)
      .def_readwrite("multiprocessors", &Settings::multiprocessors)
      .def_readwrite("has_clusters", &Settings::has_clusters)
      .def_readwrite("traced", &Settings::traced)
      .def_readwrite("observer", &Settings::observer);
  module.attr("settings") = py::cast(&settings, py::return_value_policy::reference);

  py::class_<RaceReport>(module, "RaceReport", Local())
      .def_readonly("kind", &RaceReport::kind)
      .def_readonly("memory", &RaceReport::memory)
      .def_readonly("source", &RaceReport::source)
      .def_readonly("thread", &RaceReport::thread)
      .def_readonly("other_source", &RaceReport::other_source)
      .def_readonly("other_thread", &RaceReport::other_thread)
      .def("__str__", &RaceReport::text)
      .def("__repr__", &RaceReport::text);

  module.attr("READ") = int(Access::kRead);
  module.attr("WRITE") = int(Access::kWrite);
  module.attr("ATOMIC") = int(Access::kAtomic);
  module.attr("is_checked") = kIsChecked;

  module.def("launches", &launches);
  module.def("synchronize", &synchronize);
  module.def("reports", &reports);
  module.def("clear_reports", &clear_reports);
  module.def("take_trace", &trace_as_array);
  module.def("source_of_site", &source_of_site);
}

}  // namespace emulation

#if defined(EMULATED_OPERATORS)
// Importing this module also registers the operators torch.ops.danet_emulated.*.
PYBIND11_MODULE(danet_emulated, module) { emulation::bind(module); }
#endif
