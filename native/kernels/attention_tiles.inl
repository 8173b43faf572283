// Attention over pages of int8 on matrix tiles (AMX): the numbers of attention_i8.inl, bit by bit.
//
// A tile's rows (A) are queries: their integers as two planes of int8, high and low. B are 16
// positions of keys, a block of dimensions deep, or 16 dimensions of values, a page deep, as they
// lie in the page. Both planes of two neighbouring B are multiplied, so that four sums fill C.

namespace {

using insula::kPageTokens;
constexpr int kTilesFrom = 5; // queries; fewer go the way of attention_i8.inl

struct TilePlanes : FinePlanes<V> {
  static int32_t bias(V::I) { return 0; } // tiles take signed bytes
};

// C: high and low sums of one B, then of its neighbour.
struct TileSums {
  alignas(64) int32_t c[4][kWide][16];
  V::F sum(int neighbour, int row) const {
    const V::I high = _mm512_load_si512(c[2 * neighbour][row]);
    return V::cvt(V::iadd(V::isll<8>(high), _mm512_load_si512(c[2 * neighbour + 1][row])));
  }
};

// x: rows of `stride` bytes, each with n integers, their high bytes first.
INSULA_INLINE void tile_products(const uint8_t *x, size_t stride, int n, const uint8_t *b0,
                                 const uint8_t *b1, TileSums &s) {
  T::load<4>(x, stride), T::load<5>(x + n, stride);
  T::load<6>(b0, 64);
  T::zero<0>(), T::zero<1>();
  T::dot<0, 4, 6>(), T::dot<1, 5, 6>();
  T::store<0>(s.c[0]), T::store<1>(s.c[1]);
  if (b1) {
    T::load<7>(b1, 64);
    T::zero<2>(), T::zero<3>();
    T::dot<2, 4, 7>(), T::dot<3, 5, 7>();
    T::store<2>(s.c[2]), T::store<3>(s.c[3]);
  }
}

// Scores of up to 16 queries against positions g0*16..g1*16-1; returns the products.
uint64_t key_tiles(const AttnChunk &c, const uint8_t *x, const float *units, int q0, int rows,
                   int g0, int g1) {
  const size_t blocks = insula::kv_blocks(c.head_dim), stride = blocks * kKeyBytes;
  const size_t group = 16 * insula::key_bytes_i8(c.head_dim);
  TileSums s;
  T::configure(rows, kKVBlock / 4);
  for (int g = g0; g < g1; g += 2) {
    const int n = g1 - g < 2 ? 1 : 2;
    V::F acc[2][kWide];
    for (int i = 0; i < n; ++i)
      for (int m = 0; m < rows; ++m)
        acc[i][m] = V::set1(0.0f);
    for (size_t b = 0; b < blocks; ++b) {
      const uint8_t *k[2] = {};
      for (int i = 0; i < n; ++i)
        k[i] = c.pages[(g + i) / 4] + static_cast<size_t>((g + i) % 4) * group + b * 16 * kKVBlock;
      tile_products(x + b * kKeyBytes, stride, kKVBlock, k[0], k[1], s);
      for (int i = 0; i < n; ++i) {
        const V::F scale =
            V::load_h(scales_i8(c.pages[(g + i) / 4], c.head_dim, false, (g + i) % 4, b));
        for (int m = 0; m < rows; ++m)
          acc[i][m] = V::fma(s.sum(i, m), scale, acc[i][m]);
      }
    }
    for (int i = 0; i < n; ++i)
      for (int m = 0; m < rows; ++m)
        V::storef(c.scores + (q0 + m) * kAttnChunk + (g + i) * 16,
                  V::mul(acc[i][m], V::set1(units[m] * c.scale)));
  }
  T::release();
  return static_cast<uint64_t>(g1 - g0) * blocks * 2;
}

// o += values, weighed, of the pages that hold lo..hi-1; returns the products.
uint64_t value_tiles(const AttnChunk &c, uint8_t *x, int q0, int rows, int lo, int hi) {
  const int hp = insula::pad16(c.head_dim);
  uint64_t products = 0;
  TileSums s;
  float units[kWide];
  int32_t bias;
  T::configure(rows, kPageTokens / 4);
  for (int d0 = 0; d0 < hp; d0 += kKVBlock)
    for (int p = lo / kPageTokens; p * kPageTokens < hi; ++p) {
      const uint8_t *page = c.pages[p];
      const int n = hp - d0 < kKVBlock ? 1 : 2;
      for (int m = 0; m < rows; ++m)
        units[m] = fine_weights<TilePlanes>(c.scores + (q0 + m) * kAttnChunk + p * kPageTokens,
                                            page, c.head_dim, static_cast<size_t>(d0 / kKVBlock),
                                            x + static_cast<size_t>(m) * kWeightBytes, &bias);
      tile_products(x, kWeightBytes, kPageTokens, values_i8(page, c.head_dim, d0 / 16),
                    n > 1 ? values_i8(page, c.head_dim, d0 / 16 + 1) : nullptr, s);
      products += static_cast<uint64_t>(2 * n);
      for (int m = 0; m < rows; ++m)
        for (int i = 0; i < n; ++i) {
          float *o = c.o + static_cast<size_t>((q0 + m) * hp + d0 + i * 16);
          V::storef(o, V::fma(s.sum(i, m), V::set1(units[m]), V::loadf(o)));
        }
    }
  T::release();
  return products;
}

void attention_tiled(const AttnChunk &c) {
  if (c.kv != KVType::I8)
    return attention(c);
  const int hp = insula::pad16(c.head_dim);
  const size_t stride = insula::kv_blocks(c.head_dim) * kKeyBytes;
  alignas(64) uint8_t x[kWide * kMostBlocks * kKeyBytes];
  int32_t bias[kMostBlocks];
  float units[kWide];
  for (int q0 = 0; q0 < c.n; q0 += kWide) {
    const int rows = c.n - q0 < kWide ? c.n - q0 : kWide;
    if (rows < kTilesFrom)
      return some_i8(c, q0, c.n);
    const Seen s = seen(c, q0, rows);
    uint64_t products = 0;
    if (s.lo < s.hi) {
      for (int m = 0; m < rows; ++m)
        units[m] = fine_query<TilePlanes>(c.q[q0 + m], c.head_dim,
                                          x + static_cast<size_t>(m) * stride, bias);
      products += key_tiles(c, x, units, q0, rows, s.lo / 16, (s.hi + 15) / 16);
    }
    for (int m = 0; m < rows; ++m)
      softmax_row(c, q0 + m);
    for (int i = q0 * hp; i < (q0 + rows) * hp; i += V::W)
      V::storef(c.o + i, V::set1(0.0f));
    if (s.lo < s.hi)
      products += value_tiles(c, x, q0, rows, s.lo, s.hi);
    g_tiles.fetch_add(products, std::memory_order_relaxed);
  }
}

} // namespace
