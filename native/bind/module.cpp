// The Python module: one function a room binds what that room offers. No logic lives here.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_quants(nb::module_ &m);
void bind_mapping(nb::module_ &m);
void bind_tokenizer(nb::module_ &m);
void bind_sampling(nb::module_ &m);
void bind_engine(nb::module_ &m);

NB_MODULE(_native, m) {
  m.doc() = "Insula's compiled core.";
  nb::set_leak_warnings(false); // at exit, of objects that the interpreter itself never lets go
  bind_quants(m);
  bind_mapping(m);
  bind_tokenizer(m);
  bind_sampling(m);
  bind_engine(m);
}
