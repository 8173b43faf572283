#include "../kernels/vec_avx2.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_avx2() {
  static constexpr KernelTable table = make_table("avx2");
  return &table;
}
} // namespace insula
