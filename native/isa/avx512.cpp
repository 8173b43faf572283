#include "../kernels/vec_avx512.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_avx512() {
  static constexpr KernelTable table = make_table("avx512");
  return &table;
}
} // namespace insula
