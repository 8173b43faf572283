#define INSULA_DOTPROD
#define INSULA_I8MM
#include "../kernels/vec_neon.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_neon_i8mm() {
  static constexpr KernelTable table = make_table("neon-i8mm");
  return &table;
}
} // namespace insula
