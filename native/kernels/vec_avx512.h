// AVX-512 with VNNI: one register is the whole panel's 16 lanes.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct V {
  static constexpr int W = 16;
  static constexpr int kRows = 8; // activation rows a tile takes
#ifdef INSULA_TILES
  static constexpr bool kTiles = true;
#else
  static constexpr bool kTiles = false;
#endif
  static constexpr int kPairFrom = 0; // from as many rows of a tile on, two share an accumulator
  using F = __m512;
  using I = __m512i;
  using B = __m512i;  // 64 bytes: 4 k of 16 rows
  using D = __m512i;  // dot accumulator
  using Sc = __m512i; // one integer scale per row
  using P16 = __m512i;

  static F loadf(const float *p) { return _mm512_loadu_ps(p); }
  static void storef(float *p, F v) { _mm512_storeu_ps(p, v); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F cvt(I a) { return _mm512_cvtepi32_ps(a); }
  static I round(F a) { return _mm512_cvtps_epi32(a); }
  static F pow2(I n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  static F load_h(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
  }
  static F load_bf(const uint16_t *p) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static F load_e8m0(const uint8_t *p) { // 2^(e - 128), see quants/blocks.h
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    const __m512i one = _mm512_set1_epi32(1);
    __m512i low = _mm512_slli_epi32(_mm512_add_epi32(e, one), 21); // e of 0 and 1: subnormal
    low = _mm512_min_epi32(low, _mm512_set1_epi32(0x00400000));
    __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(bits, low));
  }
  static void store_h(uint16_t *p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_i8(int8_t *p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(v));
  }

  static void storei(int32_t *p, I v) { _mm512_storeu_si512(p, v); }
  static I izero() { return _mm512_setzero_si512(); }
  static I iset1(int v) { return _mm512_set1_epi32(v); }
  static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  template <int n> static I isll(I a) { return _mm512_slli_epi32(a, n); }
  static int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
  static float top(F a) { return _mm512_reduce_max_ps(a); }
  // Numbers of 16 bits in four registers as 256 * high + low, both signed bytes.
  static void split(const I *q, uint8_t *high, uint8_t *low) {
    const __m512i a = _mm512_packs_epi32(q[0], q[1]), b = _mm512_packs_epi32(q[2], q[3]);
    const __m512i half = _mm512_set1_epi16(128), byte = _mm512_set1_epi16(255);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i h = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                                         _mm512_srai_epi16(_mm512_add_epi16(b, half), 8));
    const __m512i l = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
    _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, h));
    _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, l));
  }

  static B loadb(const void *p) { return _mm512_loadu_si512(p); }
  static B low4(B b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
  static B high4(B b) { return _mm512_and_si512(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(15)); }
  static B masked(B b, int mask) {
    return _mm512_and_si512(b, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  static B table(const void *p) { // 16 bytes for `lookup`
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i *>(p)));
  }
  static B lookup(B table, B at) { return _mm512_shuffle_epi8(table, at); }
  template <int s> static B shift(B b) { // left by s, right by -s
    if constexpr (s > 0)
      return _mm512_slli_epi16(b, s);
    else if constexpr (s < 0)
      return _mm512_srli_epi16(b, -s);
    else
      return b;
  }
  static B or_masked(B a, B b, int mask) { // a | (b & mask)
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(static_cast<char>(mask)), 0xF8);
  }

  static constexpr int defer(int) { return 64; }
  static D dzero() { return _mm512_setzero_si512(); }
  template <int at> static D dot(D d, B w, const uint32_t *x) { // with word `at` of x
    // The broadcast as a memory operand: compilers split it into two instructions and a copy.
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(d) : "v"(w), "m"(x[at]));
    return d;
  }
  static constexpr bool kDot16 = false; // int16 meets int8 as two bytes
  static constexpr int s8_bias = 128;
  static B prep_s8(B w) { return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80))); }
  template <int at> static D dot_s8(D d, B w, const uint32_t *x) { return dot<at>(d, w, x); }
  static I widen(D d) { return d; }
  static Sc scale_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
  static Sc scale_low4(const uint8_t *p) {
    return _mm512_and_si512(scale_u8(p), _mm512_set1_epi32(15));
  }
  static Sc scale_s8(const uint8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
  static I scale_add(I s, D d, Sc sc) {
    s = _mm512_add_epi32(s, _mm512_mullo_epi32(sc, d));
    __asm__("" : "+v"(s)); // keeps the sums in order, and so in registers
    return s;
  }
  static __m256i pairs(const uint8_t *p) { // rows of two neighbouring sub-blocks, interleaved
    __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 16));
    return _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
  }
  static P16 pairs_u8(const uint8_t *p) { return _mm512_cvtepu8_epi16(pairs(p)); }
  static P16 pairs_high4(const uint8_t *p) { return _mm512_srli_epi16(pairs_u8(p), 4); }
  static P16 pairs_s16(const uint8_t *p) { return _mm512_loadu_si512(p); } // already such
  static P16 pairs_s8(const uint8_t *p) { return _mm512_cvtepi8_epi16(pairs(p)); }
  static I madd16(I acc, P16 w, const uint32_t *x) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*x));
    return acc;
  }
  // As an instruction: GCC takes a function that only prefetches for one without effect.
  static void prefetch(const void *p) {
    __asm__ volatile("prefetcht0 %0" ::"m"(*static_cast<const char *>(p)));
  }
};

} // namespace
