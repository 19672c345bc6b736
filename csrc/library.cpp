// Registers the CPU kernels behind the schemas that arec_kernels/registration.py defines.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/ops.h"

// Importing arec_kernels._C loads this library, which runs the registrations below; to Python it is
// a module that knows the schemas it was built for.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr,               nullptr, nullptr, nullptr};
  PyObject* const created = PyModule_Create(&module);
  if (created) PyModule_AddIntConstant(created, "SCHEMAS", AREC_SCHEMAS);
  return created;
}

// What only tests and benchmarks need; documented in cpu/ops.h.
STABLE_TORCH_LIBRARY_FRAGMENT(arec_kernels, m) {
  m.def("cpu_exp2(Tensor x) -> Tensor");
  m.def("cpu_peak_flops(float seconds) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(arec_kernels, CPU, m) {
  m.impl("cpp_forward", TORCH_BOX(&arec::cpu::forward));
  m.impl("cpp_backward", TORCH_BOX(&arec::cpu::backward));
  m.impl("cpp_histogram", TORCH_BOX(&arec::cpu::histogram));
  m.impl("cpp_quantile", TORCH_BOX(&arec::cpu::quantile));
  m.impl("cpp_uniformity", TORCH_BOX(&arec::cpu::uniformity));
  m.impl("cpu_exp2", TORCH_BOX(&arec::cpu::exp2));
}

STABLE_TORCH_LIBRARY_IMPL(arec_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_peak_flops", TORCH_BOX(&arec::cpu::peak_flops));
}
