#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_quants(nb::module_&) {}
