// Row-wise ops over 16 virtual lanes: the same lanes, polynomials and order at every level.

namespace {

constexpr int kLanes = 16;
constexpr int HL = kLanes / V::W;

// ((l0+l8)+(l4+l12)) + ... : one tree for every sum over lanes.
inline float sum_lanes(const V::F acc[HL]) {
  alignas(64) float l[kLanes];
  for (int h = 0; h < HL; ++h)
    V::storef(l + h * V::W, acc[h]);
  for (int s = 8; s; s >>= 1)
    for (int i = 0; i < s; ++i)
      l[i] += l[i + s];
  return l[0];
}

inline float max_lanes(const V::F acc[HL]) {
  V::F m = acc[0];
  for (int h = 1; h < HL; ++h)
    m = V::max(m, acc[h]);
  return V::top(m);
}

// e^x for x in [-87.3, 88]; outside it is clamped. Cephes' expf coefficients, about 1 ulp.
inline V::F exp_v(V::F x) {
  x = V::min(V::max(x, V::set1(-87.3f)), V::set1(88.0f));
  V::I n = V::round(V::mul(x, V::set1(1.44269504088896341f)));
  V::F f = V::cvt(n);
  V::F r = V::fma(f, V::set1(-0.693359375f), x);
  r = V::fma(f, V::set1(2.12194440e-4f), r);
  V::F p = V::set1(1.9875691500e-4f);
  p = V::fma(p, r, V::set1(1.3981999507e-3f));
  p = V::fma(p, r, V::set1(8.3334519073e-3f));
  p = V::fma(p, r, V::set1(4.1665795894e-2f));
  p = V::fma(p, r, V::set1(1.6666665459e-1f));
  p = V::fma(p, r, V::set1(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set1(1.0f)));
  return V::mul(p, V::pow2(n));
}

inline V::F sigmoid_v(V::F x) {
  V::F one = V::set1(1.0f);
  return V::div(one, V::add(one, exp_v(V::sub(V::set1(0.0f), x))));
}

// erf(x) for x >= 0, off by at most 1.5e-7: Abramowitz and Stegun, 7.1.26.
inline V::F erf_v(V::F x) {
  const V::F one = V::set1(1.0f);
  const V::F t = V::div(one, V::fma(V::set1(0.3275911f), x, one));
  V::F p = V::set1(1.061405429f);
  p = V::fma(p, t, V::set1(-1.453152027f));
  p = V::fma(p, t, V::set1(1.421413741f));
  p = V::fma(p, t, V::set1(-0.284496736f));
  p = V::fma(p, t, V::set1(0.254829592f));
  const V::F e = exp_v(V::sub(V::set1(0.0f), V::mul(x, x)));
  return V::sub(one, V::mul(V::mul(p, t), e));
}

// gelu is (x + |x| erf(|x| / sqrt 2)) / 2; its tanh form is x * sigmoid(2u), u = sqrt(2/pi) (x +
// 0.044715 x^3).
inline V::F act_v(V::F x, int act) {
  if (act == 0)
    return V::mul(x, sigmoid_v(x));
  if (act == 2) {
    const V::F a = V::abs(x);
    return V::mul(V::set1(0.5f), V::fma(a, erf_v(V::mul(a, V::set1(0.70710678118654752f))), x));
  }
  if (act == 3)
    return V::max(x, V::set1(0.0f));
  V::F x3 = V::mul(V::mul(x, x), x);
  V::F u = V::fma(V::set1(0.044715f), x3, x);
  return V::mul(x, sigmoid_v(V::mul(V::set1(1.5957691216057308f), u)));
}

// n floats in steps of a register; the tail goes through a padded copy, so that lanes agree.
template <class Fn> inline void each(size_t n, Fn f) {
  size_t i = 0;
  for (; i + V::W <= n; i += V::W)
    f(i, V::W);
  if (i < n)
    f(i, static_cast<int>(n - i));
}
inline V::F load_n(const float *p, int n) {
  if (n == V::W)
    return V::loadf(p);
  float t[V::W] = {};
  for (int i = 0; i < n; ++i)
    t[i] = p[i];
  return V::loadf(t);
}
inline void store_n(float *p, V::F v, int n) {
  if (n == V::W)
    return V::storef(p, v);
  float t[V::W];
  V::storef(t, v);
  for (int i = 0; i < n; ++i)
    p[i] = t[i];
}

void act(const float *x, size_t n, int kind, float *y) {
  each(n, [&](size_t i, int c) { store_n(y + i, act_v(load_n(x + i, c), kind), c); });
}

// gpt-oss's gate (its model card and reference code): g sigmoid(1.702 g) (u + 1), g at most 7, u
// within 7 of 0.
inline V::F clamped_swiglu(V::F g, V::F u) {
  const V::F top = V::set1(7.0f), one = V::set1(1.0f);
  g = V::min(g, top);
  u = V::max(V::min(u, top), V::set1(-7.0f));
  return V::mul(V::mul(g, sigmoid_v(V::mul(V::set1(1.702f), g))), V::add(u, one));
}

void glu(const float *gate, const float *up, size_t n, int act, float *y) {
  if (act == 4)
    return each(n, [&](size_t i, int c) {
      store_n(y + i, clamped_swiglu(load_n(gate + i, c), load_n(up + i, c)), c);
    });
  each(n, [&](size_t i, int c) {
    store_n(y + i, V::mul(act_v(load_n(gate + i, c), act), load_n(up + i, c)), c);
  });
}

void softcap(float *x, size_t n, float cap) {
  each(n, [&](size_t i, int c) {
    V::F s = sigmoid_v(V::mul(load_n(x + i, c), V::set1(2.0f / cap)));
    store_n(x + i, V::mul(V::set1(cap), V::fms(V::set1(2.0f), s, V::set1(1.0f))), c);
  });
}

template <class Fn> inline float sum_over(size_t n, Fn term) {
  V::F acc[HL];
  for (int h = 0; h < HL; ++h)
    acc[h] = V::set1(0.0f);
  for (size_t i = 0; i < n; i += kLanes)
    for (int h = 0; h < HL; ++h) {
      size_t at = i + static_cast<size_t>(h * V::W);
      if (at >= n)
        break;
      int c = n - at < static_cast<size_t>(V::W) ? static_cast<int>(n - at) : V::W;
      acc[h] = term(at, c, acc[h]);
    }
  return sum_lanes(acc);
}

void rms_norm(const float *x, const float *w, size_t n, float eps, float *y) {
  float ss = sum_over(n, [&](size_t i, int c, V::F acc) {
    V::F v = load_n(x + i, c);
    return V::fma(v, v, acc);
  });
  V::F s = V::set1(1.0f / __builtin_sqrtf(ss / static_cast<float>(n) + eps));
  each(n, [&](size_t i, int c) {
    store_n(y + i, V::mul(V::mul(load_n(x + i, c), s), load_n(w + i, c)), c);
  });
}

void layer_norm(const float *x, const float *w, const float *b, size_t n, float eps, float *y) {
  float mean =
      sum_over(n, [&](size_t i, int c, V::F acc) { return V::add(acc, load_n(x + i, c)); }) /
      static_cast<float>(n);
  alignas(64) float pad[V::W];
  for (int i = 0; i < V::W; ++i)
    pad[i] = 1.0f;
  float ss = sum_over(n, [&](size_t i, int c, V::F acc) {
    V::F v = V::sub(load_n(x + i, c), V::mul(V::set1(mean), load_n(pad, c)));
    return V::fma(v, v, acc);
  });
  V::F s = V::set1(1.0f / __builtin_sqrtf(ss / static_cast<float>(n) + eps));
  each(n, [&](size_t i, int c) {
    V::F v = V::mul(V::sub(load_n(x + i, c), V::set1(mean)), s);
    v = V::mul(v, load_n(w + i, c));
    store_n(y + i, b ? V::add(v, load_n(b + i, c)) : v, c);
  });
}

inline float largest(const float *x, int n) { // of a multiple of 16, by magnitude
  V::F mx[HL];
  for (int h = 0; h < HL; ++h)
    mx[h] = V::set1(0.0f);
  for (int i = 0; i < n; i += kLanes)
    for (int h = 0; h < HL; ++h)
      mx[h] = V::max(mx[h], V::abs(V::loadf(x + i + h * V::W)));
  return max_lanes(mx);
}

// One block of n values to int8: q = round(x * 127/amax), d = amax/127; sums of each 16 of them.
template <int n> inline float quantize_block(const float *x, int8_t *q, int32_t *sums) {
  const float amax = largest(x, n);
  const V::F inv = V::set1(amax > 1e-30f ? 127.0f / amax : 0.0f);
  for (int i = 0; i < n; i += kLanes) {
    V::I sum = V::izero();
    for (int h = 0; h < HL; ++h) {
      const V::I r = V::round(V::mul(V::loadf(x + i + h * V::W), inv));
      V::store_i8(q + i + h * V::W, r);
      sum = h == 0 ? r : V::iadd(sum, r);
    }
    sums[i / kLanes] = V::sum(sum);
  }
  return amax / 127.0f;
}

inline uint32_t pair(int lo, int hi) {
  return (static_cast<uint32_t>(lo) & 0xffff) | static_cast<uint32_t>(hi) << 16;
}

// Where word w of row m stands in a tile of r rows; see Acts.
constexpr size_t place(size_t w, size_t m, size_t r) {
  if (V::kTiles && r == insula::kWideRows)
    return w / 16 * 256 + m * 16 + w % 16;
  if (V::kPairFrom != 0 && r == V::kRows)
    return w / 2 * 2 * r + m / 2 * 4 + m % 2 * 2 + w % 2;
  return w * r + m;
}

// n quants of row m of a tile of R, from word `first` on.
inline void scatter(const int8_t *q, int n, int R, int m, uint32_t *tile, size_t first) {
  for (size_t w = first; n > 0; n -= 4, q += 4, ++w)
    __builtin_memcpy(tile + place(w, static_cast<size_t>(m), static_cast<size_t>(R)), q, 4);
}

void quantize_a32(const float *x, size_t K, int R, int m, uint32_t *q, float *d, uint32_t *sums) {
  const size_t r = static_cast<size_t>(R), at = static_cast<size_t>(m);
  alignas(64) int8_t t[32];
  for (size_t b = 0; b < K / 32; ++b) {
    int32_t s[2];
    d[b * r + at] = quantize_block<32>(x + b * 32, t, s);
    sums[b * r + at] = static_cast<uint32_t>(s[0] + s[1]);
    scatter(t, 32, R, m, q, b * 8);
  }
}

void quantize_a256(const float *x, size_t K, int R, int m, uint32_t *q, float *d, uint32_t *sums) {
  const size_t r = static_cast<size_t>(R), at = static_cast<size_t>(m);
  alignas(64) int8_t t[256];
  for (size_t b = 0; b < K / 256; ++b, sums += insula::kSums256 * r) {
    int32_t s[16];
    d[b * r + at] = quantize_block<256>(x + b * 256, t, s);
    for (size_t i = 0; i < 8; ++i)
      sums[i * r + at] = pair(s[2 * i], s[2 * i + 1]);
    for (size_t i = 0; i < 4; ++i)
      sums[(8 + i) * r + at] = pair(s[4 * i] + s[4 * i + 1], s[4 * i + 2] + s[4 * i + 3]);
    scatter(t, 256, R, m, q, b * 64);
  }
}

// Blocks of 64 to int16 of at most kA16Most, two of a row in a word.
void quantize_a16(const float *x, size_t K, int R, int m, uint32_t *q, float *d) {
  constexpr int n = insula::kI16Block;
  constexpr float most = static_cast<float>(insula::kA16Most);
  const size_t r = static_cast<size_t>(R), at = static_cast<size_t>(m);
  for (size_t b = 0; b < K / n; ++b, x += n, q += n / 2 * r) {
    const float amax = largest(x, n), inv = amax > 1e-30f ? most / amax : 0.0f;
    d[b * r + at] = amax / most;
    for (int i = 0; i < n; i += V::W) {
      alignas(64) int32_t t[V::W];
      V::storei(t, V::round(V::mul(V::loadf(x + i), V::set1(inv))));
      for (int w = 0; w < V::W; w += 2)
        q[static_cast<size_t>((i + w) / 2) * r + at] = pair(t[w], t[w + 1]);
    }
  }
}

} // namespace
