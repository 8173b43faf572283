// Attention over pages of int8: sums of products are exact integers at every level.
//
// Queries and weights become integers of at most kFine = 127 * 256, high * 256 + low of two signed
// bytes, so that they meet int8 in the dots of the products:
//   score   a query has one unit; acc = fma(float(sum over a block of dimensions), the key's scale,
//           acc), block after block; then times unit * scale
//   values  a weight is first multiplied by the value's scale; a page's weights have one unit for
//           each block of dimensions; acc = fma(float(sum over the page), unit, acc), page after
//           page
// Units depend on the query alone, or on its weights in one page: on no other row and no slicing.
//
// A page (table.h): words of four dimensions of a key for 16 positions, words of four positions of
// values for 16 dimensions. Both are what a dot or a tile takes, as weights are (layout.h). Dots go
// over whole blocks and whole pages: what is behind a key's last dimension, or was left behind the
// last position, meets zeros.

namespace {

constexpr float kFine = 127 * 256;
constexpr int kKVBlock = insula::kKVBlock;
constexpr size_t kKeyBytes = 2 * kKVBlock;       // of a query's block
constexpr size_t kWeightBytes = 2 * kPageTokens; // of a query's weights in a page
constexpr size_t kMostBlocks = insula::kMostHeadDim / kKVBlock;

// --- the page ------------------------------------------------------------------------------------

inline const uint8_t *values_i8(const uint8_t *page, int hd, int group) {
  return page + static_cast<size_t>(kPageTokens) * insula::key_bytes_i8(hd) +
         static_cast<size_t>(group * kPageTokens * 16);
}

// The 16 scales of a group of positions for block b: of keys, or of values behind those.
inline const uint16_t *scales_i8(const uint8_t *page, int hd, bool of_values, int group, size_t b) {
  const size_t n = insula::kv_blocks(hd), all = static_cast<size_t>(kPageTokens) * n;
  return reinterpret_cast<const uint16_t *>(values_i8(page, hd, insula::pad16(hd) / 16)) +
         (of_values ? all : 0) + (static_cast<size_t>(group) * n + b) * 16;
}

// Up to a block of numbers as int8; returns their scale, finite whatever they are: positions that a
// query does not see weigh nothing, and zero times infinity would be something.
inline uint16_t round_i8(const float *x, int n, int8_t *q) {
  float top = 0;
  for (int i = 0; i < n; ++i)
    top = __builtin_fabsf(x[i]) > top ? __builtin_fabsf(x[i]) : top;
  constexpr float most = 65504.0f * 127.0f;
  uint16_t h[V::W];
  float d[V::W];
  V::store_h(h, V::set1((top < most ? top : most) / 127.0f));
  V::storef(d, V::load_h(h));
  const V::F inverse = V::set1(d[0] > 0 ? 1.0f / d[0] : 0.0f);
  for (int i = 0; i < n; i += V::W) {
    const V::F v = V::mul(load_n(x + i, n - i < V::W ? n - i : V::W), inverse);
    V::store_i8(q + i, V::round(V::min(V::max(v, V::set1(-127.0f)), V::set1(127.0f))));
  }
  return h[0];
}

void store_i8(const float *k, const float *v, int hd, int at, uint8_t *page) {
  const int group = at / 16;
  uint8_t *kp = page + static_cast<size_t>(group) * 16 * insula::key_bytes_i8(hd) + at % 16 * 4;
  uint8_t *vp = const_cast<uint8_t *>(values_i8(page, hd, 0)) + at / 4 * 64 + at % 4;
  for (int d = 0; d < hd; d += kKVBlock) {
    const int n = hd - d < kKVBlock ? hd - d : kKVBlock;
    const size_t b = static_cast<size_t>(d / kKVBlock);
    int8_t q[kKVBlock] = {};
    const_cast<uint16_t *>(scales_i8(page, hd, false, group, b))[at % 16] = round_i8(k + d, n, q);
    for (int i = 0; i < n; i += 4)
      std::memcpy(kp + (d + i) * 16, q + i, 4);
    const_cast<uint16_t *>(scales_i8(page, hd, true, group, b))[at % 16] = round_i8(v + d, n, q);
    for (int i = 0; i < n; ++i)
      vp[(d + i) / 16 * kPageTokens * 16 + (d + i) % 16 * 4] = static_cast<uint8_t>(q[i]);
  }
}

// --- queries and weights as integers -------------------------------------------------------------

// Dots of such integers with int8, four at a time: of the high and of the low bytes, or of int16.
template <class W> struct FinePlanes {
  static constexpr int kWord = 4; // bytes from four integers to the next four
  struct Sum {
    typename W::D high, low;
  };
  using Bytes = typename W::B;
  static Sum zero() { return {W::dzero(), W::dzero()}; }
  static Bytes load(const uint8_t *p) { return W::prep_s8(W::loadb(p)); }
  // n integers stand at x: their high bytes, then the low ones.
  template <int n, int at> static void dot(Sum &s, Bytes b, const uint8_t *x) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(x);
    s.high = W::template dot_s8<at>(s.high, b, words);
    s.low = W::template dot_s8<at>(s.low, b, words + n / 4);
  }
  // bias: what the dots are too large by, where they take unsigned bytes.
  static typename W::I total(Sum s, int32_t bias) {
    const auto t = W::iadd(W::template isll<8>(W::widen(s.high)), W::widen(s.low));
    return W::s8_bias ? W::isub(t, W::iset1(bias)) : t;
  }
  template <int n> static void store(const typename W::I *q, uint8_t *x) {
    constexpr int step = 4 * W::W;
    if constexpr (n >= step) {
      for (int i = 0; i < n; i += step)
        W::split(q + i / W::W, x + i, x + n + i);
    } else {
      typename W::I four[4] = {q[0], q[1], W::izero(), W::izero()};
      uint8_t bytes[2][step];
      W::split(four, bytes[0], bytes[1]);
      std::memcpy(x, bytes[0], n), std::memcpy(x + n, bytes[1], n);
    }
  }
  static int32_t bias(typename W::I sum) {
    if constexpr (W::s8_bias != 0)
      return W::s8_bias * W::sum(sum);
    else
      return 0;
  }
};
template <class W> struct FineWords {
  static constexpr int kWord = 8;
  using Sum = typename W::Sum16;
  using Bytes = typename W::Words16;
  static Sum zero() { return W::zero16(); }
  static Bytes load(const uint8_t *p) { return W::load16(p); }
  template <int n, int at> static void dot(Sum &s, Bytes b, const uint8_t *x) {
    s = W::dot16(s, b, x + kWord * at);
  }
  static typename W::I total(Sum s, int32_t) { return W::total16(s); }
  template <int n> static void store(const typename W::I *q, uint8_t *x) {
    for (int i = 0; i < n / W::W; ++i)
      W::store_i16(reinterpret_cast<int16_t *>(x) + i * W::W, q[i]);
  }
  static int32_t bias(typename W::I) { return 0; }
};
using Fine = std::conditional_t<V::kDot16, FineWords<V>, FinePlanes<V>>;

inline float inverse_unit(float top) { return top > 1e-30f ? kFine / top : 0.0f; }
inline float unit(float top) { return top * (1.0f / kFine); }

// n numbers of which none is larger than the one that `inverse` is of, as integers; their bias.
template <class Form, int n> inline int32_t round_fine(const V::F *x, float inverse, uint8_t *out) {
  V::I q[n / V::W], sum = V::izero();
  for (int i = 0; i < n / V::W; ++i) {
    q[i] = V::round(V::mul(x[i], V::set1(inverse)));
    sum = V::iadd(sum, q[i]);
  }
  Form::template store<n>(q, out);
  return Form::bias(sum);
}

// A query in all its blocks, kKeyBytes each; returns its unit.
template <class Form> float fine_query(const float *q, int hd, uint8_t *out, int32_t *bias) {
  constexpr int n = kKVBlock / V::W;
  V::F most = V::set1(0.0f);
  for (int i = 0; i < hd; i += V::W)
    most = V::max(most, V::abs(load_n(q + i, hd - i < V::W ? hd - i : V::W)));
  const float top = V::top(most), inverse = inverse_unit(top);
  for (int d = 0; d < hd; d += kKVBlock, out += kKeyBytes) {
    V::F x[n];
    for (int i = 0; i < n; ++i) {
      const int left = hd - d - i * V::W;
      x[i] = left > 0 ? load_n(q + d + i * V::W, left < V::W ? left : V::W) : V::set1(0.0f);
    }
    *bias++ = round_fine<Form, kKVBlock>(x, inverse, out);
  }
  return unit(top);
}

// A query's weights in a page, times the scales of the values' block b; returns their unit.
template <class Form>
float fine_weights(const float *weights, const uint8_t *page, int hd, size_t b, uint8_t *out,
                   int32_t *bias) {
  V::F x[kPageTokens / V::W], most = V::set1(0.0f);
  for (int g = 0; g < kPageTokens / 16; ++g) {
    const uint16_t *scales = scales_i8(page, hd, true, g, b);
    for (int h = 0; h < HL; ++h) {
      const V::F w = V::loadf(weights + g * 16 + h * V::W);
      x[g * HL + h] = V::mul(w, V::load_h(scales + h * V::W));
      most = V::max(most, x[g * HL + h]);
    }
  }
  const float top = V::top(most);
  *bias = round_fine<Form, kPageTokens>(x, inverse_unit(top), out);
  return unit(top);
}

// --- a few queries -------------------------------------------------------------------------------

constexpr int kSide = V::kRows >= 8 ? 16 : 8; // accumulators that find room in registers

// Up to four queries as integers, then their weights.
struct FineRows {
  alignas(64) uint8_t x[4][kMostBlocks * kKeyBytes];
  int32_t bias[4][kMostBlocks];
  float unit[4];
};

// Scores of Q queries against P registers of positions, from register `r` of the chunk on.
template <int Q, int P>
INSULA_INLINE void key_tile(const AttnChunk &c, const FineRows &f, int q0, int r) {
  const size_t blocks = insula::kv_blocks(c.head_dim);
  V::F acc[Q][P];
  const uint8_t *kp[P];
  const uint16_t *scales[P];
  for (int p = 0; p < P; ++p) {
    const int g = (r + p) / HL, at = (r + p) % HL * V::W;
    const uint8_t *page = c.pages[g / 4];
    kp[p] = page + static_cast<size_t>(g % 4 * 16) * insula::key_bytes_i8(c.head_dim) + at * 4;
    scales[p] = scales_i8(page, c.head_dim, false, g % 4, 0) + at;
    for (int q = 0; q < Q; ++q)
      acc[q][p] = V::set1(0.0f);
  }
  for (size_t b = 0; b < blocks; ++b) {
    Fine::Sum s[Q][P];
    for (int q = 0; q < Q; ++q)
      for (int p = 0; p < P; ++p)
        s[q][p] = Fine::zero();
    unroll<kKVBlock / 4>([&](auto wc) __attribute__((always_inline)) {
      constexpr int w = decltype(wc)::value;
      Fine::Bytes k[P];
      for (int p = 0; p < P; ++p)
        k[p] = Fine::load(kp[p] + b * 64 * (kKVBlock / 4) + w * 64);
      for (int q = 0; q < Q; ++q)
        for (int p = 0; p < P; ++p)
          Fine::dot<kKVBlock, w>(s[q][p], k[p], f.x[q] + b * kKeyBytes);
    });
    for (int p = 0; p < P; ++p) {
      const V::F scale = V::load_h(scales[p] + b * 16);
      for (int q = 0; q < Q; ++q)
        acc[q][p] = V::fma(V::cvt(Fine::total(s[q][p], f.bias[q][b])), scale, acc[q][p]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      V::storef(c.scores + (q0 + q) * kAttnChunk + (r + p) * V::W,
                V::mul(acc[q][p], V::set1(f.unit[q] * c.scale)));
}

template <int Q> void keys_i8(const AttnChunk &c, const FineRows &f, int q0, int g0, int g1) {
  constexpr int P = Q == 1 ? 4 : kSide / 2 / Q > 1 ? 2 : 1;
  int r = g0 * HL;
  for (; r + P <= g1 * HL; r += P)
    key_tile<Q, P>(c, f, q0, r);
  for (; r < g1 * HL; ++r)
    key_tile<Q, 1>(c, f, q0, r);
}

// o += the values of a page in D registers of dimensions, weighed, for Q queries.
template <int Q, int D>
INSULA_INLINE void value_tile_i8(const FineRows &f, const uint8_t *vp, float *o, int stride) {
  Fine::Sum s[Q][D];
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d)
      s[q][d] = Fine::zero();
  constexpr int kRun = 8; // words
  for (int w0 = 0; w0 < kPageTokens / 4; w0 += kRun)
    unroll<kRun>([&](auto wc) __attribute__((always_inline)) {
      constexpr int w = decltype(wc)::value;
      Fine::Bytes v[D];
      for (int d = 0; d < D; ++d)
        v[d] = Fine::load(vp + d / HL * kPageTokens * 16 + (w0 + w) * 64 + d % HL * V::W * 4);
      for (int q = 0; q < Q; ++q)
        for (int d = 0; d < D; ++d)
          Fine::dot<kPageTokens, w>(s[q][d], v[d], f.x[q] + w0 * Fine::kWord);
    });
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d) {
      float *at = o + static_cast<size_t>(q * stride + d * V::W);
      const V::F sum = V::cvt(Fine::total(s[q][d], f.bias[q][0]));
      V::storef(at, V::fma(sum, V::set1(f.unit[q]), V::loadf(at)));
    }
}

template <int Q> void values_i8(const AttnChunk &c, FineRows &f, int q0, int lo, int hi) {
  constexpr int most = Q == 1 ? 4 : kSide / 2 / Q > 1 ? 2 : 1, D = most < 2 * HL ? most : 2 * HL;
  constexpr int D1 = D < HL ? D : HL; // of a last block of 16 dimensions
  const int hp = insula::pad16(c.head_dim);
  for (int d0 = 0; d0 < hp; d0 += kKVBlock)
    for (int p = lo / kPageTokens; p * kPageTokens < hi; ++p) {
      const uint8_t *page = c.pages[p];
      const size_t b = static_cast<size_t>(d0 / kKVBlock);
      for (int q = 0; q < Q; ++q)
        f.unit[q] = fine_weights<Fine>(c.scores + (q0 + q) * kAttnChunk + p * kPageTokens, page,
                                       c.head_dim, b, f.x[q], f.bias[q]);
      float *o = c.o + static_cast<size_t>(q0 * hp + d0);
      const int n = hp - d0 < kKVBlock ? HL : 2 * HL;
      for (int d = 0; d < n;) {
        const uint8_t *vp = values_i8(page, c.head_dim, d0 / 16 + d / HL) + d % HL * V::W * 4;
        if (d + D <= n)
          value_tile_i8<Q, D>(f, vp, o + d * V::W, hp), d += D;
        else
          value_tile_i8<Q, D1>(f, vp, o + d * V::W, hp), d += D1;
      }
    }
}

template <int Q> void queries_i8(const AttnChunk &c, int q0, int lo, int hi) {
  FineRows f;
  const int hp = insula::pad16(c.head_dim);
  if (lo < hi) {
    for (int q = 0; q < Q; ++q)
      f.unit[q] = fine_query<Fine>(c.q[q0 + q], c.head_dim, f.x[q], f.bias[q]);
    keys_i8<Q>(c, f, q0, lo / 16, (hi + 15) / 16);
  }
  for (int q = q0; q < q0 + Q; ++q)
    softmax_row(c, q);
  for (int i = q0 * hp; i < (q0 + Q) * hp; i += V::W)
    V::storef(c.o + i, V::set1(0.0f));
  if (lo < hi)
    values_i8<Q>(c, f, q0, lo, hi);
}

// Queries first..last-1.
void some_i8(const AttnChunk &c, int first, int last) {
  for (int q0 = first; q0 < last; q0 += 4) {
    const int Q = last - q0 < 4 ? last - q0 : 4;
    const Seen s = seen(c, q0, Q);
    switch (Q) {
    case 1:
      queries_i8<1>(c, q0, s.lo, s.hi);
      break;
    case 2:
      queries_i8<2>(c, q0, s.lo, s.hi);
      break;
    case 3:
      queries_i8<3>(c, q0, s.lo, s.hi);
      break;
    default:
      queries_i8<4>(c, q0, s.lo, s.hi);
      break;
    }
  }
}

void attention_i8(const AttnChunk &c) { some_i8(c, 0, c.n); }

} // namespace
