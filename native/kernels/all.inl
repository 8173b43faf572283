// The kernels of one level. Included once by each file of native/isa/ after its vector type;
// everything is in an anonymous namespace, so that no code compiled for one level can be linked
// into another.
#include <atomic>

#include "table.h"

// clang-format off
#include "elementwise.inl"
#include "matmul.inl"
#include "attention.inl"
#include "attention_i8.inl"
#include "peak.inl"
// clang-format on

namespace {

constexpr insula::KernelTable make_table(const char *name) {
  return {name,         matmul,
          V::kRows,     0,
          quantize_a32, quantize_a256,
          quantize_a16, rms_norm,
          layer_norm,   act,
          glu,          softcap,
          store_kv,     attention,
          attn_merge,   attn_finish,
          &g_calls,     V::kPairFrom != 0 ? &g_tiles : nullptr,
          peak};
}

} // namespace
