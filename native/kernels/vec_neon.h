// ARMv8-A NEON, four lanes a register. INSULA_DOTPROD: four products of int8 are summed by one
// instruction (sdot). INSULA_I8MM, beside it: 2 rows by 8 k times 8 k by 2 rows (smmla), so that
// two activation rows share an accumulator.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct V {
  static constexpr int W = 4;
#ifdef INSULA_DOTPROD
  static constexpr int kRows = 8; // activation rows a tile takes
#else
  static constexpr int kRows = 4;
#endif
  static constexpr bool kTiles = false; // matrix tiles beside the vectors
#ifdef INSULA_I8MM
  static constexpr int kPairFrom = 4; // rows of a tile; fewer do not pay for weaving the weights
#else
  static constexpr int kPairFrom = 0;
#endif
  using F = float32x4_t;
  using I = int32x4_t;
  using B = uint8x16_t; // 4 k of 4 rows
  using Sc = int32x4_t;
  struct P16 {
    int16x4_t a, b;
  }; // two neighbouring sub-blocks

  static F loadf(const float *p) { return vld1q_f32(p); }
  static void storef(float *p, F v) { vst1q_f32(p, v); }
  static F set1(float v) { return vdupq_n_f32(v); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F fms(F a, F b, F c) { return vfmaq_f32(vnegq_f32(c), a, b); }
  static F cvt(I a) { return vcvtq_f32_s32(a); }
  static I round(F a) { return vcvtnq_s32_f32(a); }
  static F pow2(I n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
  static F load_h(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static F load_e8m0(const uint8_t *p) { // 2^(e - 128), see quants/blocks.h
    const int32x4_t e = scale_u8(p), one = vdupq_n_s32(1);
    int32x4_t low = vshlq_n_s32(vaddq_s32(e, one), 21); // e of 0 and 1: subnormal
    low = vminq_s32(low, vdupq_n_s32(0x00400000));
    return vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32(vsubq_s32(e, one), 23), low));
  }
  static void store_h(uint16_t *p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static void store_i8(int8_t *p, I v) {
    int16x4_t h = vqmovn_s32(v);
    int8x8_t b = vqmovn_s16(vcombine_s16(h, h));
    uint32_t u = vget_lane_u32(vreinterpret_u32_s8(b), 0);
    std::memcpy(p, &u, 4);
  }

  static void storei(int32_t *p, I v) { vst1q_s32(p, v); }
  static I izero() { return vdupq_n_s32(0); }
  static I iset1(int v) { return vdupq_n_s32(v); }
  static I iadd(I a, I b) { return vaddq_s32(a, b); }
  static I isub(I a, I b) { return vsubq_s32(a, b); }
  template <int n> static I isll(I a) { return vshlq_n_s32(a, n); }
  static int32_t sum(I a) { return vaddvq_s32(a); }
  static float top(F a) { return vmaxvq_f32(a); }
  // Numbers of 16 bits in four registers as 256 * high + low, both signed bytes.
  static void split(const I *q, uint8_t *high, uint8_t *low) {
    const int16x8_t a = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t b = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    vst1q_u8(high, vreinterpretq_u8_s8(vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8))));
    vst1q_u8(low, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(a), vmovn_s16(b))));
  }

  static B loadb(const void *p) { return vld1q_u8(static_cast<const uint8_t *>(p)); }
  static B low4(B b) { return vandq_u8(b, vdupq_n_u8(15)); }
  static B high4(B b) { return vshrq_n_u8(b, 4); }
  static B masked(B b, int mask) { return vandq_u8(b, vdupq_n_u8(static_cast<uint8_t>(mask))); }
  static B table(const void *p) { return loadb(p); } // 16 bytes for `lookup`
  static B lookup(B table, B at) { return vqtbl1q_u8(table, at); }
  template <int s> static B shift(B b) {
    if constexpr (s > 0)
      return vshlq_n_u8(b, s);
    else if constexpr (s < 0)
      return vshrq_n_u8(b, -s);
    else
      return b;
  }
  static B or_masked(B a, B b, int mask) {
    return vorrq_u8(a, vandq_u8(b, vdupq_n_u8(static_cast<uint8_t>(mask))));
  }

  static constexpr int defer(int) { return 64; }
  static constexpr int s8_bias = 0; // weights are below 128: signed dots do for all
  static B prep_s8(B w) { return w; }

#ifdef INSULA_DOTPROD
  static constexpr bool kDot16 = false; // int16 meets int8 as two bytes
  using D = int32x4_t;
  static D dzero() { return izero(); }
  // Four words a load; neighbouring dots share it.
  template <int at> static D dot(D d, B w, const uint32_t *x) {
    int8x16_t q = vreinterpretq_s8_u32(vld1q_u32(x + at / 4 * 4));
    __asm__("" : "+w"(q)); // or three of four words become three loads
    return vdotq_laneq_s32(d, vreinterpretq_s8_u8(w), q, at % 4);
  }
  static I widen(D d) { return d; }
#else
  struct D {
    int32x4_t lo, hi;
  }; // pair sums of rows 0,1 and of rows 2,3
  static D dzero() { return {izero(), izero()}; }
  template <int at> static D dot(D d, B w, const uint32_t *x) {
    int8x16_t s = vreinterpretq_s8_u8(w), q = vreinterpretq_s8_u32(vdupq_n_u32(x[at]));
    d.lo = vpadalq_s16(d.lo, vmull_s8(vget_low_s8(s), vget_low_s8(q)));
    d.hi = vpadalq_s16(d.hi, vmull_s8(vget_high_s8(s), vget_high_s8(q)));
    return d;
  }
  static I widen(D d) { return vpaddq_s32(d.lo, d.hi); }

  // int16 times int8, widened before.
  static constexpr bool kDot16 = true;
  struct Sum16 {
    int32x4_t lane[4];
  }; // four k each
  struct Words16 {
    int16x8_t lo, hi;
  }; // 4 k of lanes 0,1 and of lanes 2,3
  static Sum16 zero16() { return {{izero(), izero(), izero(), izero()}}; }
  static Words16 load16(const uint8_t *p) {
    const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(p));
    return {vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b)};
  }
  static Sum16 dot16(Sum16 s, Words16 w, const uint8_t *x) { // with four int16
    uint64_t four;
    std::memcpy(&four, x, 8);
    const int16x8_t q = vreinterpretq_s16_u64(vdupq_n_u64(four));
    return {{vmlal_s16(s.lane[0], vget_low_s16(w.lo), vget_low_s16(q)),
             vmlal_high_s16(s.lane[1], w.lo, q),
             vmlal_s16(s.lane[2], vget_low_s16(w.hi), vget_low_s16(q)),
             vmlal_high_s16(s.lane[3], w.hi, q)}};
  }
  static I total16(Sum16 s) {
    return vpaddq_s32(vpaddq_s32(s.lane[0], s.lane[1]), vpaddq_s32(s.lane[2], s.lane[3]));
  }
  static void store_i16(int16_t *p, I v) { vst1_s16(p, vqmovn_s32(v)); }
#endif
  template <int at> static D dot_s8(D d, B w, const uint32_t *x) { return dot<at>(d, w, x); }

#ifdef INSULA_I8MM
  struct Pair {
    int32x4_t lo, hi;
  }; // activation rows m, m+1 with lanes 0,1 and with lanes 2,3: (m0, m1, m'0, m'1)
  struct Woven {
    int8x16_t lo, hi;
  }; // 8 k of lanes 0,1 and of lanes 2,3
  static Pair pzero() { return {izero(), izero()}; }
  static Woven weave(B a, B b) {
    const uint32x4_t s = vreinterpretq_u32_u8(a), t = vreinterpretq_u32_u8(b);
    return {vreinterpretq_s8_u32(vzip1q_u32(s, t)), vreinterpretq_s8_u32(vzip2q_u32(s, t))};
  }
  static Pair mmla(Pair d, Woven w, const uint32_t *x) {
    const int8x16_t q = vreinterpretq_s8_u32(vld1q_u32(x));
    return {vmmlaq_s32(d.lo, q, w.lo), vmmlaq_s32(d.hi, q, w.hi)};
  }
  static int32x4_t halves(int32x4_t a, int32x4_t b, bool high) {
    const int64x2_t s = vreinterpretq_s64_s32(a), t = vreinterpretq_s64_s32(b);
    return vreinterpretq_s32_s64(high ? vzip2q_s64(s, t) : vzip1q_s64(s, t));
  }
  static I first(Pair d) { return halves(d.lo, d.hi, false); }
  static I second(Pair d) { return halves(d.lo, d.hi, true); }
  static Pair twice(Sc s) { return {halves(s, s, false), halves(s, s, true)}; }
  static Pair padd(Pair a, Pair b) { return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)}; }
  static Pair pscale_add(Pair s, Pair d, Pair sc) {
    return {vmlaq_s32(s.lo, sc.lo, d.lo), vmlaq_s32(s.hi, sc.hi, d.hi)};
  }
#endif

  static uint8x8_t four(const uint8_t *p) {
    uint32_t u;
    std::memcpy(&u, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(u));
  }
  static int16x4_t u16(uint8x8_t b) { return vreinterpret_s16_u16(vget_low_u16(vmovl_u8(b))); }
  static int16x4_t s16(const uint8_t *p) {
    return vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four(p))));
  }
  static Sc scale_u8(const uint8_t *p) { return vmovl_s16(u16(four(p))); }
  static Sc scale_low4(const uint8_t *p) { return vmovl_s16(u16(vand_u8(four(p), vdup_n_u8(15)))); }
  static Sc scale_s8(const uint8_t *p) { return vmovl_s16(s16(p)); }
  static I scale_add(I s, D d, Sc sc) { return vmlaq_s32(s, sc, widen(d)); }
  static P16 pairs_u8(const uint8_t *p) { return {u16(four(p)), u16(four(p + 16))}; }
  static P16 pairs_high4(const uint8_t *p) {
    return {u16(vshr_n_u8(four(p), 4)), u16(vshr_n_u8(four(p + 16), 4))};
  }
  static P16 pairs_s16(const uint8_t *p) { // already such
    const int16x8_t q = vreinterpretq_s16_u8(vld1q_u8(p));
    return {vuzp1_s16(vget_low_s16(q), vget_high_s16(q)),
            vuzp2_s16(vget_low_s16(q), vget_high_s16(q))};
  }
  static P16 pairs_s8(const uint8_t *p) { return {s16(p), s16(p + 16)}; }
  static I madd16(I acc, P16 w, const uint32_t *x) {
    const int16x4_t q = vreinterpret_s16_u32(vdup_n_u32(*x));
    return vmlal_lane_s16(vmlal_lane_s16(acc, w.a, q, 0), w.b, q, 1);
  }
  // As an instruction: GCC takes a function that only prefetches for one without effect.
  static void prefetch(const void *p) { __asm__ volatile("prfm pldl1keep, [%0]" ::"r"(p)); }
};

} // namespace
