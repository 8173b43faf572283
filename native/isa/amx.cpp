// AMX tiles for many rows, AVX-512 for the rest. With INSULA_EMULATE_TILES the tiles are plain
// code, so that any AVX-512 machine can test what surrounds them.
#define INSULA_TILES 1
#include "../kernels/vec_avx512.h"
//
#ifdef INSULA_EMULATE_TILES
#include "../kernels/tiles_emulated.h"
#else
#include "../kernels/tiles_amx.h"
#endif
//
#include "../kernels/all.inl"
//
#include "../kernels/tiles.inl"
//
#include "../kernels/attention_tiles.inl"

namespace insula {
namespace {
constexpr KernelTable with_tiles() {
  KernelTable t = make_table("amx");
  t.matmul = matmul_wide;
  t.wide_from = 5; // up to four rows the vectors are as fast, and need no unpacking
  t.attention = attention_tiled;
  t.tiles = &g_tiles;
  t.peak = peak_tiles;
  return t;
}
} // namespace

#ifdef INSULA_EMULATE_TILES
const KernelTable *table_amx_emulated() {
#else
const KernelTable *table_amx() {
#endif
  static constexpr KernelTable table = with_tiles();
  return &table;
}
} // namespace insula
