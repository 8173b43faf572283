#include "../kernels/vec_scalar.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_scalar() {
  static constexpr KernelTable table = make_table("scalar");
  return &table;
}
} // namespace insula
