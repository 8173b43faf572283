// No instruction set beyond the compiler's baseline: 16 lanes as arrays. Slow, and the truth.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout.h"

namespace {

struct V {
  static constexpr int W = 16;
  static constexpr int kRows = 1;       // activation rows a tile takes
  static constexpr bool kTiles = false; // matrix tiles beside the vectors
  static constexpr int kPairFrom = 0;   // no rows share an accumulator
  struct F {
    float v[16];
  };
  struct I {
    int32_t v[16];
  };
  struct B {
    uint8_t v[64];
  };
  using D = I;
  using Sc = I;
  struct P16 {
    int16_t v[32];
  };

#define INSULA_EACH(T, expr)                                                                       \
  T o;                                                                                             \
  for (int i = 0; i < 16; ++i)                                                                     \
    o.v[i] = expr;                                                                                 \
  return o
  static F loadf(const float *p) { INSULA_EACH(F, p[i]); }
  static void storef(float *p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static F set1(float x) { INSULA_EACH(F, x); }
  static F add(F a, F b) { INSULA_EACH(F, a.v[i] + b.v[i]); }
  static F sub(F a, F b) { INSULA_EACH(F, a.v[i] - b.v[i]); }
  static F mul(F a, F b) { INSULA_EACH(F, a.v[i] * b.v[i]); }
  static F div(F a, F b) { INSULA_EACH(F, a.v[i] / b.v[i]); }
  static F max(F a, F b) { INSULA_EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
  static F min(F a, F b) { INSULA_EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
  static F abs(F a) { INSULA_EACH(F, __builtin_fabsf(a.v[i])); }
  static F fma(F a, F b, F c) { INSULA_EACH(F, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
  static F fms(F a, F b, F c) { INSULA_EACH(F, __builtin_fmaf(a.v[i], b.v[i], -c.v[i])); }
  static F cvt(I a) { INSULA_EACH(F, static_cast<float>(a.v[i])); }
  // Nearest even for |x| < 2^22: the sum's rounding does it.
  static int32_t nearest(float x) {
    if (!(x > -4194304.0f && x < 4194304.0f))
      return INT32_MIN;
    volatile float t = x + 12582912.0f;
    return static_cast<int32_t>(t - 12582912.0f);
  }
  static I round(F a) { INSULA_EACH(I, nearest(a.v[i])); }
  static float two_to(int32_t n) {
    uint32_t u = static_cast<uint32_t>(n + 127) << 23;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static F pow2(I n) { INSULA_EACH(F, two_to(n.v[i])); }
  static F load_h(const uint16_t *p) { INSULA_EACH(F, insula::half_to_float(p[i])); }
  static float from_bf(uint16_t h) {
    uint32_t u = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static F load_bf(const uint16_t *p) { INSULA_EACH(F, from_bf(p[i])); }
  static float from_e8m0(uint8_t e) { // 2^(e - 128), see quants/blocks.h
    uint32_t u = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static F load_e8m0(const uint8_t *p) { INSULA_EACH(F, from_e8m0(p[i])); }
  static void store_h(uint16_t *p, F a) {
    for (int i = 0; i < 16; ++i)
      p[i] = insula::float_to_half(a.v[i]);
  }
  static void store_i8(int8_t *p, I a) {
    for (int i = 0; i < 16; ++i)
      p[i] = static_cast<int8_t>(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
  }

  static void storei(int32_t *p, I v) { std::memcpy(p, v.v, sizeof v.v); }
  static I izero() { INSULA_EACH(I, 0); }
  static I iset1(int x) { INSULA_EACH(I, x); }
  static I iadd(I a, I b) { INSULA_EACH(I, a.v[i] + b.v[i]); }
  static I isub(I a, I b) { INSULA_EACH(I, a.v[i] - b.v[i]); }
  template <int n> static I isll(I a) { INSULA_EACH(I, a.v[i] * (1 << n)); }
  static int32_t sum(I a) {
    int32_t t = 0;
    for (int32_t v : a.v)
      t += v;
    return t;
  }
  static float top(F a) {
    float t = a.v[0];
    for (int i = 1; i < 16; ++i)
      t = a.v[i] > t ? a.v[i] : t;
    return t;
  }
  // Numbers of 16 bits in four registers as 256 * high + low, both signed bytes.
  static void split(const I *q, uint8_t *high, uint8_t *low) {
    for (int i = 0; i < 64; ++i) {
      const int32_t x = q[i / 16].v[i % 16], h = (x + 128) >> 8;
      high[i] = static_cast<uint8_t>(h), low[i] = static_cast<uint8_t>(x - h * 256);
    }
  }

  static B loadb(const void *p) {
    B o;
    std::memcpy(o.v, p, 64);
    return o;
  }
#define INSULA_BYTES(expr)                                                                         \
  B o;                                                                                             \
  for (int i = 0; i < 64; ++i)                                                                     \
    o.v[i] = static_cast<uint8_t>(expr);                                                           \
  return o
  static B low4(B b) { INSULA_BYTES(b.v[i] & 15); }
  static B high4(B b) { INSULA_BYTES(b.v[i] >> 4); }
  static B masked(B b, int mask) { INSULA_BYTES(b.v[i] & mask); }
  static B table(const void *p) { // 16 bytes for `lookup`
    B o{};
    std::memcpy(o.v, p, 16);
    return o;
  }
  static B lookup(const B &table, B at) { INSULA_BYTES(table.v[at.v[i] & 15]); }
  template <int s> static B shift(B b) {
    if constexpr (s >= 0) {
      INSULA_BYTES(b.v[i] << s);
    } else {
      INSULA_BYTES(b.v[i] >> -s);
    }
  }
  static B or_masked(B a, B b, int mask) { INSULA_BYTES(a.v[i] | (b.v[i] & mask)); }

  static constexpr int defer(int) { return 64; }
  static D dzero() { return izero(); }
  template <int at> static D dot(D d, B w, const uint32_t *x) {
    int8_t q[4];
    std::memcpy(q, x + at, 4);
    INSULA_EACH(D, d.v[i] + w.v[4 * i] * q[0] + w.v[4 * i + 1] * q[1] + w.v[4 * i + 2] * q[2] +
                       w.v[4 * i + 3] * q[3]);
  }
  static constexpr bool kDot16 = false; // int16 meets int8 as two bytes
  static constexpr int s8_bias = 0;
  static B prep_s8(B w) { return w; }
  static int s8(const B &w, int i) { return static_cast<int8_t>(w.v[i]); }
  template <int at> static D dot_s8(D d, B w, const uint32_t *x) {
    int8_t q[4];
    std::memcpy(q, x + at, 4);
    INSULA_EACH(D, d.v[i] + s8(w, 4 * i) * q[0] + s8(w, 4 * i + 1) * q[1] +
                       s8(w, 4 * i + 2) * q[2] + s8(w, 4 * i + 3) * q[3]);
  }
  static I widen(D d) { return d; }
  static Sc scale_u8(const uint8_t *p) { INSULA_EACH(Sc, p[i]); }
  static Sc scale_low4(const uint8_t *p) { INSULA_EACH(Sc, p[i] & 15); }
  static Sc scale_s8(const uint8_t *p) { INSULA_EACH(Sc, static_cast<int8_t>(p[i])); }
  static I scale_add(I s, D d, Sc sc) { INSULA_EACH(I, s.v[i] + sc.v[i] * d.v[i]); }
  static P16 pairs_u8(const uint8_t *p) {
    P16 o;
    for (int i = 0; i < 16; ++i)
      o.v[2 * i] = p[i], o.v[2 * i + 1] = p[16 + i];
    return o;
  }
  static P16 pairs_high4(const uint8_t *p) {
    P16 o;
    for (int i = 0; i < 16; ++i)
      o.v[2 * i] = p[i] >> 4, o.v[2 * i + 1] = p[16 + i] >> 4;
    return o;
  }
  static P16 pairs_s16(const uint8_t *p) { // already such
    P16 o;
    std::memcpy(o.v, p, sizeof o.v);
    return o;
  }
  static P16 pairs_s8(const uint8_t *p) {
    P16 o;
    for (int i = 0; i < 16; ++i)
      o.v[2 * i] = static_cast<int8_t>(p[i]), o.v[2 * i + 1] = static_cast<int8_t>(p[16 + i]);
    return o;
  }
  static I madd16(I acc, P16 w, const uint32_t *x) {
    int16_t q[2];
    std::memcpy(q, x, 4);
    INSULA_EACH(I, acc.v[i] + w.v[2 * i] * q[0] + w.v[2 * i + 1] * q[1]);
  }
  static void prefetch(const void *) {}
#undef INSULA_EACH
#undef INSULA_BYTES
};

} // namespace
