#define INSULA_VNNI256
#include "../kernels/vec_avx2.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_avxvnni() {
  static constexpr KernelTable table = make_table("avxvnni");
  return &table;
}
} // namespace insula
