#include "../kernels/vec_neon.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_neon() {
  static constexpr KernelTable table = make_table("neon");
  return &table;
}
} // namespace insula
