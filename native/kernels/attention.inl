// Attention of a few query vectors over one fixed chunk of one KV head, and the merge of chunks.
//
// A chunk is kAttnChunk positions at multiples of kAttnChunk, whoever computes it, so that a row's
// result does not depend on threads or slicing. Scores: one fma chain over the head's dimensions
// per (query, position). Sums of weights: 16 lanes over positions, then the lane tree. Values: one
// fma chain over positions per dimension. Int8 has sums of its own: attention_i8.inl.

namespace {

using insula::AttnChunk;
using insula::kAttnChunk;
using insula::kPageTokens;
using insula::KVType;

void store_i8(const float *k, const float *v, int hd, int at, uint8_t *page);
void attention_i8(const AttnChunk &c);

// How pages of a type hold values, one by one.
template <KVType t> struct KV {
  using T = uint16_t;
  static V::F load(const T *p) { return V::load_h(p); }
  // Finite stays finite: a hidden position has the weight 0, and 0 times infinity is not 0.
  static void store(T *p, V::F v) {
    V::store_h(p, V::min(V::set1(65504.0f), V::max(V::set1(-65504.0f), v)));
  }
};
template <> struct KV<KVType::F32> {
  using T = float;
  static V::F load(const T *p) { return V::loadf(p); }
  static void store(T *p, V::F v) { V::storef(p, v); }
};

template <class T> inline const T *values_of(const uint8_t *page, int hd) {
  return reinterpret_cast<const T *>(page) + static_cast<size_t>(kPageTokens * hd);
}

template <KVType type>
void store_kv_t(const float *k, const float *v, int hd, int at, uint8_t *page) {
  using T = typename KV<type>::T;
  T *kp = reinterpret_cast<T *>(page) + static_cast<size_t>(at / 16 * hd * 16 + at % 16);
  T *vp = const_cast<T *>(values_of<T>(page, hd)) + static_cast<size_t>(at * insula::pad16(hd));
  for (int i = 0; i < hd; i += V::W) {
    const int c = hd - i < V::W ? hd - i : V::W;
    T t[V::W];
    KV<type>::store(t, load_n(k + i, c));
    for (int j = 0; j < c; ++j)
      kp[(i + j) * 16] = t[j];
    KV<type>::store(t, load_n(v + i, c));
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
    return store_i8(k, v, hd, at, page);
  }
}

// Scores of Q queries against 16*P positions starting at `g` (in groups of 16).
template <KVType type, int Q, int P> inline void score_tile(const AttnChunk &c, int q0, int g) {
  using T = typename KV<type>::T;
  V::F acc[Q][P][HL];
  const T *kp[P];
  for (int p = 0; p < P; ++p)
    kp[p] = reinterpret_cast<const T *>(c.pages[(g + p) / 4]) +
            static_cast<size_t>((g + p) % 4 * c.head_dim * 16);
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      for (int h = 0; h < HL; ++h)
        acc[q][p][h] = V::set1(0.0f);
  for (int d = 0; d < c.head_dim; ++d)
    for (int p = 0; p < P; ++p)
      for (int h = 0; h < HL; ++h) {
        V::F k = KV<type>::load(kp[p] + d * 16 + h * V::W);
        for (int q = 0; q < Q; ++q)
          acc[q][p][h] = V::fma(V::set1(c.q[q0 + q][d]), k, acc[q][p][h]);
      }
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      for (int h = 0; h < HL; ++h)
        V::storef(c.scores + (q0 + q) * kAttnChunk + (g + p) * 16 + h * V::W,
                  V::mul(acc[q][p][h], V::set1(c.scale)));
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
  V::F acc[Q][D][HL];
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d)
      for (int h = 0; h < HL; ++h)
        acc[q][d][h] = V::set1(0.0f);
  for (int i = lo; i < hi; ++i) {
    const uint8_t *page = c.pages[i / kPageTokens];
    const int at = i % kPageTokens;
    const T *v = values_of<T>(page, c.head_dim) + static_cast<size_t>(at * hp + d0);
    for (int d = 0; d < D; ++d)
      for (int h = 0; h < HL; ++h) {
        const V::F x = KV<type>::load(v + d * 16 + h * V::W);
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

// Positions that some of n queries see.
struct Seen {
  int lo, hi;
};
inline Seen seen(const AttnChunk &c, int q0, int n) {
  Seen s{kAttnChunk, 0};
  for (int q = q0; q < q0 + n; ++q)
    if (c.lo[q] < c.hi[q]) {
      s.lo = c.lo[q] < s.lo ? c.lo[q] : s.lo;
      s.hi = c.hi[q] > s.hi ? c.hi[q] : s.hi;
    }
  return s.lo < s.hi ? s : Seen{0, 0};
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
  const int a = lo / kLanes * kLanes, b = (hi + kLanes - 1) / kLanes * kLanes;
  for (int i = a; i < lo; ++i)
    s[i] = -__builtin_inff();
  for (int i = hi; i < b; ++i)
    s[i] = -__builtin_inff();
  V::F acc[HL];
  for (int h = 0; h < HL; ++h)
    acc[h] = V::set1(-__builtin_inff());
  for (int i = a; i < b; i += kLanes)
    for (int h = 0; h < HL; ++h)
      acc[h] = V::max(acc[h], V::loadf(s + i + h * V::W));
  const float m = max_lanes(acc);
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
    const auto [lo, hi] = seen(c, q0, Q);
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
    return attention_i8(c);
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
