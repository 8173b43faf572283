// Products of many rows on matrix tiles of int8 (AMX): the numbers of matmul.inl, bit by bit.
//
// A tile of weights (B) is 16 panel lanes wide, as packed; a tile of activations (A) is 16 rows of
// 64 k, as quantized for wide tiles. A panel is unpacked to int8 once for all rows:
//   formats of 32   one plane q - zero; a product per block of 32, read once a block
//   formats of 256  scale * (q - zero) is split into 64 * high + low, two planes, so that a
//                   block of 256 is summed in the tile and read once. |scale * q| <= 4096.
// Both give the same exact integers as the dots of matmul.inl; the float steps are the same.
//
// Needs T (tiles) beside V: load<t>, zero<t>, dot<c, a, b>, store<t>, configure, release.

namespace {

constexpr int kWide = insula::kWideRows;
constexpr size_t kTileBytes = 1024;

// --- unpacking a panel ---------------------------------------------------------------------------

template <Layout L> void plane_32(const uint8_t *panel, size_t K, uint8_t *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  constexpr int zero = L == Layout::Q4_1 || L == Layout::Q5_1 ? 0 : zero_32<L>();
  const __m512i z = _mm512_set1_epi8(static_cast<char>(zero));
  for (size_t b = 0; b < K / 32; ++b, out += 512) {
    const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    unroll<4>([&](auto vc) __attribute__((always_inline)) {
      constexpr int v = decltype(vc)::value;
      V::B lo, hi;
      groups<L, v>(w, w + 256, lo, hi);
      _mm512_store_si512(out + v * 64, _mm512_sub_epi8(lo, z));
      _mm512_store_si512(out + 256 + v * 64, _mm512_sub_epi8(hi, z));
    });
  }
}

// 64 quants times their lanes' scales (int16, twice a lane) as 64 * high + low.
template <Layout L>
INSULA_INLINE void split(__m512i q, __m512i scale, uint8_t *low, uint8_t *high) {
  __m512i even = _mm512_and_si512(q, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(q, 8);
  if constexpr (Super<L>::zero_shift >= 0) {
    const __m512i zero = _mm512_set1_epi16(1 << Super<L>::zero_shift);
    even = _mm512_sub_epi16(even, zero);
    odd = _mm512_sub_epi16(odd, zero);
  }
  even = _mm512_mullo_epi16(even, scale);
  odd = _mm512_mullo_epi16(odd, scale);
  const __m512i six = _mm512_set1_epi16(63), byte = _mm512_set1_epi16(0xff);
  _mm512_store_si512(low, _mm512_or_si512(_mm512_and_si512(even, six),
                                          _mm512_slli_epi16(_mm512_and_si512(odd, six), 8)));
  _mm512_store_si512(high, _mm512_or_si512(_mm512_and_si512(_mm512_srai_epi16(even, 6), byte),
                                           _mm512_slli_epi16(_mm512_srai_epi16(odd, 6), 8)));
}

// Per block of 256 four tiles of the low plane, then four of the high one.
template <Layout L> void planes_256(const uint8_t *panel, size_t K, uint8_t *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  using P = Super<L>;
  constexpr int S = P::S, kLines = S / 4;
  for (size_t b = 0; b < K / 256; ++b, out += 8 * kTileBytes) {
    const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    auto sub_block = [&](int j, auto oddc) __attribute__((always_inline)) {
      const uint8_t *sp = w + P::meta + 16 * j;
      const __m512i one = L == Layout::Q2_K ? V::scale_low4(sp)
                          : P::mins         ? V::scale_u8(sp)
                                            : V::scale_s8(sp);
      const __m512i scale = _mm512_or_si512(_mm512_slli_epi32(one, 16),
                                            _mm512_and_si512(one, _mm512_set1_epi32(0xffff)));
      uint8_t *low = out + j * kLines * 64, *high = low + 4 * kTileBytes;
      unroll<S / 8>([&](auto vc) __attribute__((always_inline)) {
        constexpr int v = decltype(vc)::value;
        V::B l, h;
        groups<L, v, decltype(oddc)::value>(w + j * P::quants, w + P::high + j / P::together * 64,
                                            l, h);
        split<L>(l, scale, low + v * 64, high + v * 64);
        split<L>(h, scale, low + (S / 8 + v) * 64, high + (S / 8 + v) * 64);
      });
    };
    for (int j = 0; j < P::subs; j += P::together)
      unroll<P::together>([&](auto oddc) __attribute__((always_inline)) {
        sub_block(j + decltype(oddc)::value, oddc);
      });
  }
}

// --- products ------------------------------------------------------------------------------------

// Two tiles of rows, or one (A), of which `rows` count: out [rows][16] += a panel's product.
template <Layout L, int A>
void rows_32(const uint8_t *panel, const uint8_t *plane, size_t K, const Acts &a, int rows,
             float *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  constexpr size_t kBlocks = 4; // of which the sums wait in memory
  const size_t blocks = K / 32;
  const uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  alignas(64) int32_t c[kBlocks][A][kWide][kPanel];
  for (size_t b0 = 0; b0 < blocks; b0 += kBlocks) {
    const size_t n = b0 + kBlocks < blocks ? kBlocks : blocks - b0;
    for (size_t i = 0; i < n; ++i) {
      const size_t b = b0 + i;
      const uint32_t *x = a.q + b / 2 * 256 + b % 2 * 8;
      T::load<6>(plane + b * 512, 64);
      T::load<4>(x, 64);
      T::zero<0>();
      T::dot<0, 4, 6>();
      if constexpr (A > 1) {
        T::load<5>(x + a.q_tile, 64);
        T::zero<1>();
        T::dot<1, 5, 6>();
        T::store<1>(c[i][1]);
      }
      T::store<0>(c[i][0]);
    }
    for (int t = 0; t < A; ++t) {
      const int here = rows - t * kWide < kWide ? rows - t * kWide : kWide;
      const float *xd = a.d + static_cast<size_t>(t) * a.d_tile;
      const uint32_t *xs = a.sums + static_cast<size_t>(t) * a.sums_tile;
      for (int m = 0; m < here; ++m) {
        float *o = out + (t * kWide + m) * kPanel;
        V::F acc = V::loadf(o);
        for (size_t i = 0; i < n; ++i) {
          const size_t b = b0 + i, at = b * kWide + static_cast<size_t>(m);
          const V::F s = V::cvt(_mm512_load_si512(c[i][t][m])), d = V::set1(xd[at]);
          if constexpr (L == Layout::Q4_1 || L == Layout::Q5_1) {
            const uint16_t *meta = reinterpret_cast<const uint16_t *>(
                panel + (b + 1) * static_cast<size_t>(li.main_bytes) - 64);
            const V::F sum = V::set1(static_cast<float>(static_cast<int32_t>(xs[at])));
            const V::F w = V::fma(V::load_h(meta), s, V::mul(V::load_h(meta + kPanel), sum));
            acc = V::fma(d, w, acc);
          } else {
            const uint8_t *sp = scales + b * static_cast<size_t>(li.scale_bytes);
            const V::F D = L == Layout::MXFP4 ? V::load_e8m0(sp)
                                              : V::load_h(reinterpret_cast<const uint16_t *>(sp));
            acc = V::fma(s, V::mul(D, d), acc);
          }
        }
        V::storef(o, acc);
      }
    }
  }
}

template <Layout L, int A>
void rows_256(const uint8_t *panel, const uint8_t *planes, size_t K, const Acts &a, int rows,
              float *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  using P = Super<L>;
  constexpr int kPairs = P::mins ? P::subs / 2 : 0;
  constexpr size_t kFirst = P::S == 16 ? 0 : 8; // of the sums that the mins meet
  const size_t blocks = K / 256;
  const uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  alignas(64) int32_t low[A][kWide][kPanel], high[A][kWide][kPanel];
  for (size_t b = 0; b < blocks; ++b, planes += 8 * kTileBytes) {
    T::zero<0>(), T::zero<1>();
    if constexpr (A > 1)
      T::zero<2>(), T::zero<3>();
    for (size_t k = 0; k < 4; ++k) {
      const uint32_t *x = a.q + (b * 4 + k) * 256;
      T::load<4>(x, 64);
      T::load<6>(planes + k * kTileBytes, 64);
      T::load<7>(planes + (4 + k) * kTileBytes, 64);
      T::dot<0, 4, 6>();
      T::dot<1, 4, 7>();
      if constexpr (A > 1) {
        T::load<5>(x + a.q_tile, 64);
        T::dot<2, 5, 6>();
        T::dot<3, 5, 7>();
      }
    }
    T::store<0>(low[0]), T::store<1>(high[0]);
    if constexpr (A > 1)
      T::store<2>(low[1]), T::store<3>(high[1]);
    const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    V::P16 mins[kPairs + 1];
    for (int p = 0; p < kPairs; ++p)
      mins[p] = L == Layout::Q2_K ? V::pairs_high4(w + P::meta + 32 * p)
                                  : V::pairs_u8(w + P::meta + 128 + 32 * p);
    for (int t = 0; t < A; ++t)
      for (int m = 0; m < kWide && t * kWide + m < rows; ++m) {
        const size_t r = static_cast<size_t>(m), tile = static_cast<size_t>(t);
        float *o = out + (t * kWide + m) * kPanel;
        const V::F d = V::set1(a.d[tile * a.d_tile + b * kWide + r]);
        const V::I s =
            V::iadd(V::isll<6>(_mm512_load_si512(high[t][m])), _mm512_load_si512(low[t][m]));
        V::F acc = V::loadf(o);
        if constexpr (!P::mins) {
          const V::F D = V::load_h(reinterpret_cast<const uint16_t *>(scales + b * 32));
          acc = V::fma(V::mul(d, D), V::cvt(s), acc);
        } else {
          const uint32_t *sums = a.sums + tile * a.sums_tile;
          V::I mi = V::izero();
          for (size_t p = 0; p < kPairs; ++p)
            mi = V::madd16(mi, mins[p], sums + (b * insula::kSums256 + kFirst + p) * kWide + r);
          const uint16_t *dp = reinterpret_cast<const uint16_t *>(w + P::meta + 256);
          acc = V::fma(
              d, V::fms(V::load_h(dp), V::cvt(s), V::mul(V::load_h(dp + kPanel), V::cvt(mi))), acc);
        }
        V::storef(o, acc);
      }
  }
}

// Acts from tile `t` on.
INSULA_INLINE Acts from_tile(Acts a, size_t t) {
  if (a.q)
    a.q += t * a.q_tile, a.d += t * a.d_tile, a.sums += t * a.sums_tile;
  if (a.f)
    a.f += t * a.f_tile;
  return a;
}

// One panel against all rows: out [rows, in whole tiles][16].
template <Layout L>
void product(const uint8_t *panel, size_t K, const Acts &a, int rows, uint8_t *plane, float *out) {
  const int tiles = (rows + kWide - 1) / kWide;
  const size_t blocks = K / static_cast<size_t>(insula::info(L).block);
  constexpr bool by32 = insula::kLayoutInfo[static_cast<int>(L)].act == ActForm::A32;
  constexpr int deep = by32 ? 8 : 16; // words of k that a tile takes
  for (int i = 0; i < tiles * kWide * kPanel; i += kPanel)
    V::storef(out + i, V::set1(0));
  const uint8_t *weights = plane;
  if constexpr (L == Layout::Q8_0)
    weights = panel; // is one already
  else if constexpr (by32)
    plane_32<L>(panel, K, plane);
  else
    planes_256<L>(panel, K, plane);
  T::configure(tiles > 1 ? kWide : rows, deep);
  for (int t = 0; t < tiles; t += 2) {
    const Acts at = from_tile(a, static_cast<size_t>(t));
    const int left = rows - t * kWide;
    float *o = out + t * kWide * kPanel;
    if constexpr (by32)
      t + 1 < tiles ? rows_32<L, 2>(panel, weights, K, at, left, o)
                    : rows_32<L, 1>(panel, weights, K, at, left, o);
    else
      t + 1 < tiles ? rows_256<L, 2>(panel, weights, K, at, left, o)
                    : rows_256<L, 1>(panel, weights, K, at, left, o);
  }
  T::release();
  g_tiles.fetch_add(static_cast<uint64_t>(tiles) * blocks * (by32 ? 1 : 8),
                    std::memory_order_relaxed);
}

// Float weights have no tiles under the contract: vectors, half a wide tile at a time.
template <Layout L>
void product_f(const uint8_t *panel, size_t K, const Acts &a, int rows, float *out) {
  for (int m = 0; m < rows; m += V::kRows) {
    Acts half = from_tile(a, static_cast<size_t>(m / kWide));
    half.f += m % kWide;
    matmul_f<L, V::kRows, kWide, false>(panel, K, half, out + m * kPanel);
  }
}

// Neither have numbers of 16 bits.
void product_16(const uint8_t *panel, size_t K, const Acts &a, int rows, float *out) {
  for (int m = 0; m < rows; m += V::kRows) {
    Acts half = from_tile(a, static_cast<size_t>(m / kWide));
    half.q += m % kWide, half.d += m % kWide;
    matmul_16<V::kRows, kWide, false>(panel, K, half, out + m * kPanel);
  }
}

void wide_product(Layout l, const uint8_t *panel, size_t K, const insula::ActSet &s, int rows,
                  uint8_t *plane, float *out) {
  switch (l) {
  case Layout::F32:
    return product_f<Layout::F32>(panel, K, s.f32, rows, out);
  case Layout::F16:
    return product_f<Layout::F16>(panel, K, s.f32, rows, out);
  case Layout::BF16:
    return product_f<Layout::BF16>(panel, K, s.f32, rows, out);
  case Layout::Q4_0:
    return product<Layout::Q4_0>(panel, K, s.a32, rows, plane, out);
  case Layout::Q4_1:
    return product<Layout::Q4_1>(panel, K, s.a32, rows, plane, out);
  case Layout::Q5_0:
    return product<Layout::Q5_0>(panel, K, s.a32, rows, plane, out);
  case Layout::Q5_1:
    return product<Layout::Q5_1>(panel, K, s.a32, rows, plane, out);
  case Layout::Q8_0:
    return product<Layout::Q8_0>(panel, K, s.a32, rows, plane, out);
  case Layout::IQ4_NL:
    return product<Layout::IQ4_NL>(panel, K, s.a32, rows, plane, out);
  case Layout::MXFP4:
    return product<Layout::MXFP4>(panel, K, s.a32, rows, plane, out);
  case Layout::Q2_K:
    return product<Layout::Q2_K>(panel, K, s.a256, rows, plane, out);
  case Layout::Q3_K:
    return product<Layout::Q3_K>(panel, K, s.a256, rows, plane, out);
  case Layout::IQ4_XS:
    return product<Layout::IQ4_XS>(panel, K, s.a256, rows, plane, out);
  case Layout::Q4_K:
    return product<Layout::Q4_K>(panel, K, s.a256, rows, plane, out);
  case Layout::Q5_K:
    return product<Layout::Q5_K>(panel, K, s.a256, rows, plane, out);
  case Layout::Q6_K:
    return product<Layout::Q6_K>(panel, K, s.a256, rows, plane, out);
  case Layout::I16:
    return product_16(panel, K, s.a16, rows, out);
  }
}

// As `matmul`, a panel at a time for all rows.
void matmul_wide(const insula::MatJob &j) {
  if (j.acts->R != kWide)
    return matmul(j);
  g_calls.fetch_add(1, std::memory_order_relaxed);
  const size_t K = (j.K + 255) / 256 * 256, rows = static_cast<size_t>(j.rows);
  uint8_t *plane = j.scratch;
  float *t = reinterpret_cast<float *>(plane + 2 * kPanel * K);
  float *t2 = t + (rows + kWide - 1) / kWide * kWide * kPanel;
  for (int p = j.first_panel; p < j.first_panel + j.panels; ++p) {
    const size_t at = static_cast<size_t>(p);
    wide_product(j.layout, j.w + at * insula::panel_bytes(j.layout, j.K), j.K, *j.acts, j.rows,
                 plane, t);
    if (j.w2)
      wide_product(j.layout2, j.w2 + at * insula::panel_bytes(j.layout2, j.K), j.K, *j.acts, j.rows,
                   plane, t2);
    finish_panel(j, p * kPanel, 0, j.rows, t, t2);
  }
}

// As `peak`, of tiles.
uint64_t peak_tiles(size_t steps) {
  alignas(64) uint8_t ones[kTileBytes];
  std::memset(ones, 1, sizeof ones);
  T::configure(kWide, 16);
  unroll<4>([](auto t) { T::zero<decltype(t)::value>(); });
  unroll<4>([&](auto t) { T::load<4 + decltype(t)::value>(ones, 64); });
  for (size_t s = 0; s < steps; ++s) {
    T::dot<0, 4, 6>();
    T::dot<1, 4, 7>();
    T::dot<2, 5, 6>();
    T::dot<3, 5, 7>();
  }
  T::release();
  return steps * 4 * kWide * kTileBytes;
}

} // namespace
