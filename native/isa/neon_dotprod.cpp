#define INSULA_DOTPROD
#include "../kernels/vec_neon.h"
//
#include "../kernels/all.inl"

namespace insula {
const KernelTable *table_neon_dotprod() {
  static constexpr KernelTable table = make_table("neon-dotprod");
  return &table;
}
} // namespace insula
