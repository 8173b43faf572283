// What an instruction-set level offers. One table per level, filled in native/isa/.
//
// The numeric contract: every function computes each row from that row alone, in one order of
// operations that is the same in every table, so that results are equal bit by bit whatever the
// batch, the slicing, the number of threads or the level.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "insula.h"
#include "layout.h"

namespace insula {

// Activations of a batch of rows, in tiles of R rows whose values stand side by side, so that a
// kernel reaches all of them from one pointer. R is what `tile_rows` says: 1 for a single row, the
// table's `rows` for a few, kWideRows where the table has matrix tiles. In a wide tile a row's
// words stand together, 16 by 16: word k/4 of row m is q[k/64][m][k/4 % 16], the form that tiles
// load. Where a level multiplies two rows at once, a pair of rows has its words two by two in a
// tile of a few rows: q[k/8][m/2][m%2][k/4 % 2].
//   A32 : q words [K/4][R] of 4 int8,  d [K/32][R],   sums int32 [K/32][R]
//   A256: q words [K/4][R],            d [K/256][R],  sums words [K/256][12][R], two int16 each:
//         8 pairs of sums over 16 values, then 4 pairs of sums over 32
//   F32 : f [K][R]
//   A16 : q words [K/2][R] of 2 int16, d [K/64][R], in wide tiles and of pairs too
struct Acts {
  const uint32_t *q;
  const float *d;
  const uint32_t *sums;
  const float *f;
  size_t q_tile, d_tile, sums_tile, f_tile; // elements from tile to tile
};

// One attention task: `n` query vectors against one chunk of one KV head.
struct AttnChunk {
  const float *const *q; // n vectors of head_dim
  int n;
  int head_dim;
  const uint8_t *const *pages; // pages of this chunk for this KV head: K then V
  int positions;               // positions of the chunk that exist, at most kAttnChunk
  const int *lo;               // per query: first visible position, relative to the chunk
  const int *hi;               // per query: one past the last visible position
  float scale, softcap;        // softcap 0: none
  KVType kv;                   // how the pages hold keys and values
  float *scores;               // scratch, n * kAttnChunk floats
  float *m;                    // out: maximum per query (-inf if nothing is visible)
  float *l;                    // out: sum of exp(score - m)
  float *o;                    // out: n * pad16(head_dim), not normalized
};

inline constexpr int kAttnChunk = 256;
inline constexpr int kPageTokens = 64;

// The same rows in every form that a group of weights needs; unused forms stay null.
struct ActSet {
  Acts a32, a256, f32, a16;
  int R;
};

// Neighbouring panels of one weight (or of a gate and an up weight) against `rows` rows:
//   y = x w^T + bias, through `then` if it is one;
//   with w2: y = act(x w^T + bias) * (x w2^T + bias2);  add: dst += y.
struct MatJob {
  Layout layout, layout2;
  const uint8_t *w, *w2; // whole packed weights; w2 null if there is no second one
  const float *bias, *bias2;
  int first_panel, panels, columns; // columns of the whole weight
  size_t K;
  const ActSet *acts;
  int rows, act;
  int then = -1;
  bool add;
  float *dst;
  size_t dst_stride;
  uint8_t *scratch; // of this thread, wide_scratch() bytes; only wide tiles use it
};

inline constexpr size_t kSums256 = 12; // words of sums a 256-block

inline constexpr int kWideRows = 16;

struct KernelTable {
  const char *name;
  void (*matmul)(const MatJob &j);
  int rows;      // R of a tile of a few rows
  int wide_from; // as many rows and more go in wide tiles; 0: this level has none
  // One row into place m of a tile of R, the pointers at the tile's start.
  void (*quantize_a32)(const float *x, size_t K, int R, int m, uint32_t *q, float *d,
                       uint32_t *sums);
  void (*quantize_a256)(const float *x, size_t K, int R, int m, uint32_t *q, float *d,
                        uint32_t *sums);
  void (*quantize_a16)(const float *x, size_t K, int R, int m, uint32_t *q, float *d);
  void (*rms_norm)(const float *x, const float *w, size_t n, float eps, float *y);
  void (*layer_norm)(const float *x, const float *w, const float *b, size_t n, float eps, float *y);
  // act: 0 silu, 1 gelu by tanh, 2 gelu, 3 relu; of glu alone: 4 gpt-oss's clamped swiglu
  void (*act)(const float *x, size_t n, int act, float *y);
  void (*glu)(const float *gate, const float *up, size_t n, int act, float *y);
  void (*softcap)(float *x, size_t n, float cap);
  void (*store_kv)(const float *k, const float *v, int head_dim, int slot_in_page, KVType type,
                   uint8_t *page);
  void (*attention)(const AttnChunk &c);
  void (*attn_merge)(float *m, float *l, float *o, const float *m2, const float *l2,
                     const float *o2, int head_dim);
  void (*attn_finish)(const float *l, const float *o, int head_dim, float *out);
  std::atomic<uint64_t> *calls; // counted by this level's own matmul code
  // Products of matrix tiles, or of panels with two rows at once; null where the level has neither.
  std::atomic<uint64_t> *tiles;
  uint64_t (*peak)(size_t steps); // int8 multiply-adds without memory; returns how many were done
};

// R of the tiles that M rows go into.
inline int tile_rows(const KernelTable &t, int M) {
  return M == 1 ? 1 : t.wide_from && M >= t.wide_from ? kWideRows : t.rows;
}

// What one thread needs beside its inputs for wide tiles of up to `rows` rows of up to K values:
// a panel's weights as two planes of int8, and the products of two panels.
inline size_t wide_scratch(int rows, size_t K) {
  const size_t r = static_cast<size_t>((rows + kWideRows - 1) / kWideRows * kWideRows);
  return 2 * kPanel * ((K + 255) / 256 * 256) + 2 * r * kPanel * sizeof(float);
}

inline constexpr int pad16(int n) { return (n + 15) / 16 * 16; }

// One page of one KV head: keys [4][head_dim][16], then values [64][pad16(head_dim)].
// Int8, in words of four: keys [4][dimensions in words][16][4 dimensions], values
// [pad16(head_dim) / 16][positions in words][16][4 positions]. Behind them a float16 scale for each
// kKVBlock dimensions of a position: of keys [4][blocks][16], then of values in the same way.
inline constexpr int kKVBlock = 32;
inline constexpr int kMostHeadDim = 1024;
inline constexpr size_t kv_blocks(int head_dim) {
  return static_cast<size_t>((head_dim + kKVBlock - 1) / kKVBlock);
}
inline constexpr size_t key_bytes_i8(int head_dim) { // of one position
  return static_cast<size_t>((head_dim + 3) / 4 * 4);
}
inline constexpr size_t kv_page_head_bytes(KVType type, int head_dim) {
  const size_t n = static_cast<size_t>(kPageTokens), values = static_cast<size_t>(pad16(head_dim));
  if (type == KVType::I8)
    return n * (key_bytes_i8(head_dim) + values) + 2 * n * kv_blocks(head_dim) * 2;
  return n * (static_cast<size_t>(head_dim) + values) * (type == KVType::F32 ? 4 : 2);
}

const KernelTable *table_scalar();
const KernelTable *table_avx2();
const KernelTable *table_avxvnni();
const KernelTable *table_avxvnni_evex();
const KernelTable *table_avx512();
const KernelTable *table_amx();
const KernelTable *table_neon();
const KernelTable *table_neon_dotprod();
const KernelTable *table_neon_i8mm();

} // namespace insula
