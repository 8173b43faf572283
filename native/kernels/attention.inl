// Attention of a few query vectors over one fixed chunk of one KV head, and the merge of chunks.
//
// A chunk is kAttnChunk positions at multiples of kAttnChunk, whoever computes it, so that a row's
// result does not depend on threads or slicing. Scores: one fma chain over the head's dimensions
// per (query, position). Sums of weights: 16 lanes over positions, then the lane tree. Values: one
// fma chain over positions per dimension. Int8 keys: such a chain per block, then one over blocks
// by the scales; int8 values are multiplied by their scale first.

namespace {

using insula::AttnChunk;
using insula::kAttnChunk;
using insula::kPageTokens;
using insula::KVType;

// How pages of a type hold values, one by one. Blocks of kBlock dimensions have a scale, 0: none.
template <KVType t> struct KV {
  using T = uint16_t;
  static constexpr int kBlock = 0;
  static V::F load(const T *p) { return V::load_h(p); }
  static void store(T *p, V::F v) { V::store_h(p, v); }
};
template <> struct KV<KVType::F32> {
  using T = float;
  static constexpr int kBlock = 0;
  static V::F load(const T *p) { return V::loadf(p); }
  static void store(T *p, V::F v) { V::storef(p, v); }
};
template <> struct KV<KVType::I8> {
  using T = int8_t;
  static constexpr int kBlock = insula::kKVBlock;
  static V::F load(const T *p) { return V::load_i8(p); }
  static void store(T *p, V::F v) { V::store_i8(p, V::round(v)); }
};

template <class T> inline const T *values_of(const uint8_t *page, int hd) {
  return reinterpret_cast<const T *>(page) + static_cast<size_t>(kPageTokens * hd);
}

// The 16 scales of a group of positions for block b: of keys, or of values behind those.
inline const uint16_t *scales_of(const uint8_t *page, int hd, bool of_values, int group, int b) {
  const size_t n = insula::kv_blocks(hd), all = static_cast<size_t>(kPageTokens) * n;
  return reinterpret_cast<const uint16_t *>(
             page + static_cast<size_t>(kPageTokens * (hd + insula::pad16(hd)))) +
         (of_values ? all : 0) + (static_cast<size_t>(group) * n + static_cast<size_t>(b)) * 16;
}

// The scale of up to a block of values, and its inverse (0 where all are 0).
inline uint16_t block_scale(const float *x, int n, float *inverse) {
  float top = 0;
  for (int i = 0; i < n; ++i)
    top = __builtin_fabsf(x[i]) > top ? __builtin_fabsf(x[i]) : top;
  uint16_t h[V::W];
  float d[V::W];
  V::store_h(h, V::set1(top / 127.0f));
  V::storef(d, V::load_h(h));
  *inverse = d[0] > 0 ? 1.0f / d[0] : 0.0f;
  return h[0];
}

template <KVType type>
void store_kv_t(const float *k, const float *v, int hd, int at, uint8_t *page) {
  using T = typename KV<type>::T;
  constexpr int B = KV<type>::kBlock;
  T *kp = reinterpret_cast<T *>(page) + static_cast<size_t>(at / 16 * hd * 16 + at % 16);
  T *vp = const_cast<T *>(values_of<T>(page, hd)) + static_cast<size_t>(at * insula::pad16(hd));
  float ik = 1, iv = 1;
  for (int i = 0; i < hd; i += V::W) {
    const int c = hd - i < V::W ? hd - i : V::W;
    if constexpr (B > 0)
      if (i % B == 0) {
        const int n = hd - i < B ? hd - i : B;
        const uint16_t dk = block_scale(k + i, n, &ik), dv = block_scale(v + i, n, &iv);
        const_cast<uint16_t *>(scales_of(page, hd, false, at / 16, i / B))[at % 16] = dk;
        const_cast<uint16_t *>(scales_of(page, hd, true, at / 16, i / B))[at % 16] = dv;
      }
    V::F a = load_n(k + i, c), b = load_n(v + i, c);
    if constexpr (B > 0)
      a = V::mul(a, V::set1(ik)), b = V::mul(b, V::set1(iv));
    T t[V::W];
    KV<type>::store(t, a);
    for (int j = 0; j < c; ++j)
      kp[(i + j) * 16] = t[j];
    KV<type>::store(t, b);
    for (int j = 0; j < c; ++j)
      vp[i + j] = t[j];
  }
}

void store_kv(const float *k, const float *v, int hd, int at, KVType type, uint8_t *page) {
  switch (type) {
  case KVType::F16:
    return store_kv_t<KVType::F16>(k, v, hd, at, page);
  case KVType::F32:
    return store_kv_t<KVType::F32>(k, v, hd, at, page);
  case KVType::I8:
    return store_kv_t<KVType::I8>(k, v, hd, at, page);
  }
}

// Scores of Q queries against 16*P positions starting at `g` (in groups of 16).
template <KVType type, int Q, int P> inline void score_tile(const AttnChunk &c, int q0, int g) {
  using T = typename KV<type>::T;
  constexpr int B = KV<type>::kBlock;
  V::F acc[Q][P][HL], all[Q][P][HL];
  const T *kp[P];
  for (int p = 0; p < P; ++p)
    kp[p] = reinterpret_cast<const T *>(c.pages[(g + p) / 4]) +
            static_cast<size_t>((g + p) % 4 * c.head_dim * 16);
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      for (int h = 0; h < HL; ++h)
        all[q][p][h] = V::set1(0.0f);
  for (int d0 = 0; d0 < c.head_dim;) {
    const int d1 = B > 0 && d0 + B < c.head_dim ? d0 + B : c.head_dim;
    for (int q = 0; q < Q; ++q)
      for (int p = 0; p < P; ++p)
        for (int h = 0; h < HL; ++h)
          acc[q][p][h] = V::set1(0.0f);
    for (int d = d0; d < d1; ++d)
      for (int p = 0; p < P; ++p)
        for (int h = 0; h < HL; ++h) {
          V::F k = KV<type>::load(kp[p] + d * 16 + h * V::W);
          for (int q = 0; q < Q; ++q)
            acc[q][p][h] = V::fma(V::set1(c.q[q0 + q][d]), k, acc[q][p][h]);
        }
    if constexpr (B > 0) {
      for (int p = 0; p < P; ++p)
        for (int h = 0; h < HL; ++h) {
          const V::F s = V::load_h(
              scales_of(c.pages[(g + p) / 4], c.head_dim, false, (g + p) % 4, d0 / B) + h * V::W);
          for (int q = 0; q < Q; ++q)
            all[q][p][h] = V::fma(acc[q][p][h], s, all[q][p][h]);
        }
    }
    d0 = d1;
  }
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      for (int h = 0; h < HL; ++h)
        V::storef(c.scores + (q0 + q) * kAttnChunk + (g + p) * 16 + h * V::W,
                  V::mul(B > 0 ? all[q][p][h] : acc[q][p][h], V::set1(c.scale)));
}

template <KVType type, int Q> inline void score_rows(const AttnChunk &c, int q0, int g0, int g1) {
  constexpr int P = HL == 1 ? 2 : 1;
  int g = g0;
  for (; g + P <= g1; g += P)
    score_tile<type, Q, P>(c, q0, g);
  for (; g < g1; ++g)
    score_tile<type, Q, 1>(c, q0, g);
}

// o[d] += w[pos] * v[pos][d] for Q queries and D registers-of-16 of dimensions.
template <KVType type, int Q, int D>
inline void value_tile(const AttnChunk &c, int q0, int d0, int lo, int hi, int hp) {
  using T = typename KV<type>::T;
  constexpr int B = KV<type>::kBlock;
  V::F acc[Q][D][HL];
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d)
      for (int h = 0; h < HL; ++h)
        acc[q][d][h] = V::set1(0.0f);
  float scales[D][kLanes];
  for (int i = lo; i < hi; ++i) {
    const uint8_t *page = c.pages[i / kPageTokens];
    const int at = i % kPageTokens;
    if constexpr (B > 0)
      if (at % 16 == 0 || i == lo)
        for (int d = 0; d < D; ++d)
          for (int h = 0; h < HL; ++h)
            V::storef(scales[d] + h * V::W,
                      V::load_h(scales_of(page, c.head_dim, true, at / 16, (d0 + d * 16) / B) +
                                h * V::W));
    const T *v = values_of<T>(page, c.head_dim) + static_cast<size_t>(at * hp + d0);
    for (int d = 0; d < D; ++d)
      for (int h = 0; h < HL; ++h) {
        V::F x = KV<type>::load(v + d * 16 + h * V::W);
        if constexpr (B > 0)
          x = V::mul(x, V::set1(scales[d][at % 16]));
        for (int q = 0; q < Q; ++q)
          acc[q][d][h] = V::fma(V::set1(c.scores[(q0 + q) * kAttnChunk + i]), x, acc[q][d][h]);
      }
  }
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d)
      for (int h = 0; h < HL; ++h)
        V::storef(c.o + static_cast<size_t>((q0 + q) * hp + d0 + d * 16 + h * V::W), acc[q][d][h]);
}

template <KVType type, int Q> inline void value_rows(const AttnChunk &c, int q0, int lo, int hi) {
  constexpr int D = HL == 1 ? 4 : HL == 2 ? 1 : 1;
  const int hp = insula::pad16(c.head_dim);
  int d = 0;
  for (; d + 16 * D <= hp; d += 16 * D)
    value_tile<type, Q, D>(c, q0, d, lo, hi, hp);
  for (; d < hp; d += 16)
    value_tile<type, Q, 1>(c, q0, d, lo, hi, hp);
}

// Scores become weights exp(score - max) in place; outside [lo, hi) they become zero.
inline void softmax_row(const AttnChunk &c, int q) {
  float *s = c.scores + q * kAttnChunk;
  const int lo = c.lo[q], hi = c.hi[q];
  if (lo >= hi) {
    for (int i = 0; i < kAttnChunk; ++i)
      s[i] = 0.0f;
    c.m[q] = -__builtin_inff();
    c.l[q] = 0.0f;
    return;
  }
  if (c.softcap > 0.0f)
    softcap(s + lo, static_cast<size_t>(hi - lo), c.softcap);
  float m = s[lo];
  for (int i = lo + 1; i < hi; ++i)
    m = m > s[i] ? m : s[i];
  const int a = lo / kLanes * kLanes, b = (hi + kLanes - 1) / kLanes * kLanes;
  for (int i = a; i < lo; ++i)
    s[i] = -__builtin_inff();
  for (int i = hi; i < b; ++i)
    s[i] = -__builtin_inff();
  V::F acc[HL];
  for (int h = 0; h < HL; ++h)
    acc[h] = V::set1(0.0f);
  for (int i = a; i < b; i += kLanes) {
    for (int h = 0; h < HL; ++h)
      V::storef(s + i + h * V::W, exp_v(V::sub(V::loadf(s + i + h * V::W), V::set1(m))));
    for (int k = i; k < lo && k < i + kLanes; ++k)
      s[k] = 0.0f;
    for (int k = hi > i ? hi : i; k < i + kLanes; ++k)
      s[k] = 0.0f;
    for (int h = 0; h < HL; ++h)
      acc[h] = V::add(acc[h], V::loadf(s + i + h * V::W));
  }
  for (int i = 0; i < a; ++i)
    s[i] = 0.0f;
  for (int i = b; i < kAttnChunk; ++i)
    s[i] = 0.0f;
  c.m[q] = m;
  c.l[q] = sum_lanes(acc);
}

template <KVType type> void attention_t(const AttnChunk &c) {
  constexpr int QT = 4;
  for (int q0 = 0; q0 < c.n; q0 += QT) {
    const int Q = c.n - q0 < QT ? c.n - q0 : QT;
    int lo = kAttnChunk, hi = 0;
    for (int q = q0; q < q0 + Q; ++q)
      if (c.lo[q] < c.hi[q]) {
        lo = c.lo[q] < lo ? c.lo[q] : lo;
        hi = c.hi[q] > hi ? c.hi[q] : hi;
      }
    const int g0 = lo / 16, g1 = (hi + 15) / 16;
    switch (lo < hi ? Q : 0) {
    case 1:
      score_rows<type, 1>(c, q0, g0, g1);
      break;
    case 2:
      score_rows<type, 2>(c, q0, g0, g1);
      break;
    case 3:
      score_rows<type, 3>(c, q0, g0, g1);
      break;
    case 4:
      score_rows<type, 4>(c, q0, g0, g1);
      break;
    default:
      break;
    }
    for (int q = q0; q < q0 + Q; ++q)
      softmax_row(c, q);
    if (lo >= hi)
      lo = hi = 0;
    switch (Q) {
    case 1:
      value_rows<type, 1>(c, q0, lo, hi);
      break;
    case 2:
      value_rows<type, 2>(c, q0, lo, hi);
      break;
    case 3:
      value_rows<type, 3>(c, q0, lo, hi);
      break;
    default:
      value_rows<type, 4>(c, q0, lo, hi);
      break;
    }
  }
}

void attention(const AttnChunk &c) {
  switch (c.kv) {
  case KVType::F16:
    return attention_t<KVType::F16>(c);
  case KVType::F32:
    return attention_t<KVType::F32>(c);
  case KVType::I8:
    return attention_t<KVType::I8>(c);
  }
}

inline float exp_1(float x) {
  float t[V::W];
  V::storef(t, exp_v(V::set1(x)));
  return t[0];
}

// (m, l, o) of positions before, merged with (m2, l2, o2) of the next chunk.
void attn_merge(float *m, float *l, float *o, const float *m2, const float *l2, const float *o2,
                int hd) {
  if (*m2 == -__builtin_inff())
    return;
  const int hp = insula::pad16(hd);
  if (*m == -__builtin_inff()) {
    *m = *m2, *l = *l2;
    for (int i = 0; i < hp; ++i)
      o[i] = o2[i];
    return;
  }
  const float top = *m > *m2 ? *m : *m2;
  const float a = exp_1(*m - top), b = exp_1(*m2 - top);
  *l = __builtin_fmaf(*l2, b, *l * a);
  for (int i = 0; i < hp; i += V::W)
    V::storef(o + i, V::fma(V::loadf(o2 + i), V::set1(b), V::mul(V::loadf(o + i), V::set1(a))));
  *m = top;
}

void attn_finish(const float *l, const float *o, int hd, float *out) {
  for (int i = 0; i < hd; i += V::W) {
    int c = hd - i < V::W ? hd - i : V::W;
    store_n(out + i, V::div(V::loadf(o + i), V::set1(*l)), c);
  }
}

} // namespace
