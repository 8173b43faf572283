// 256-bit x86: AVX2 (maddubs with deferred widening), or with INSULA_VNNI256 the 256-bit VNNI dot.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct V {
  static constexpr int W = 8;
  static constexpr int kRows = 4;       // activation rows a tile takes
  static constexpr bool kTiles = false; // matrix tiles beside the vectors
  static constexpr int kPairFrom = 0;   // no rows share an accumulator
  using F = __m256;
  using I = __m256i;
  using B = __m256i; // 32 bytes: 4 k of 8 rows
  using D = __m256i; // 16-bit pair sums (AVX2) or 32-bit sums (VNNI)
  using Sc = __m256i;
  using P16 = __m256i;

  static F loadf(const float *p) { return _mm256_loadu_ps(p); }
  static void storef(float *p, F v) { _mm256_storeu_ps(p, v); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static F cvt(I a) { return _mm256_cvtepi32_ps(a); }
  static I round(F a) { return _mm256_cvtps_epi32(a); }
  static F pow2(I n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static F load_h(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
  static F load_bf(const uint16_t *p) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static F load_e8m0(const uint8_t *p) { // 2^(e - 128), see quants/blocks.h
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    const __m256i one = _mm256_set1_epi32(1);
    __m256i low = _mm256_slli_epi32(_mm256_add_epi32(e, one), 21); // e of 0 and 1: subnormal
    low = _mm256_min_epi32(low, _mm256_set1_epi32(0x00400000));
    __m256i bits = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(bits, low));
  }
  static void store_h(uint16_t *p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_i8(int8_t *p, I v) {
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(w, w));
  }

  static void storei(int32_t *p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), v); }
  static I izero() { return _mm256_setzero_si256(); }
  static I iset1(int v) { return _mm256_set1_epi32(v); }
  static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
  template <int n> static I isll(I a) { return _mm256_slli_epi32(a, n); }
  static int32_t sum(I a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  static float top(F a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Numbers of 16 bits in four registers as 256 * high + low, both signed bytes.
  static void split(const I *q, uint8_t *high, uint8_t *low) {
    const __m256i a = _mm256_packs_epi32(q[0], q[1]), b = _mm256_packs_epi32(q[2], q[3]);
    const __m256i half = _mm256_set1_epi16(128), byte = _mm256_set1_epi16(255);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i h = _mm256_packs_epi16(_mm256_srai_epi16(_mm256_add_epi16(a, half), 8),
                                         _mm256_srai_epi16(_mm256_add_epi16(b, half), 8));
    const __m256i l = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(high), _mm256_permutevar8x32_epi32(h, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(low), _mm256_permutevar8x32_epi32(l, order));
  }

  static B loadb(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
  static B low4(B b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
  static B high4(B b) { return _mm256_and_si256(_mm256_srli_epi16(b, 4), _mm256_set1_epi8(15)); }
  static B masked(B b, int mask) {
    return _mm256_and_si256(b, _mm256_set1_epi8(static_cast<char>(mask)));
  }
  static B table(const void *p) { // 16 bytes for `lookup`
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(p)));
  }
  static B lookup(B table, B at) { return _mm256_shuffle_epi8(table, at); }
  template <int s> static B shift(B b) {
    if constexpr (s > 0)
      return _mm256_slli_epi16(b, s);
    else if constexpr (s < 0)
      return _mm256_srli_epi16(b, -s);
    else
      return b;
  }
  static B or_masked(B a, B b, int mask) {
    return _mm256_or_si256(a, _mm256_and_si256(b, _mm256_set1_epi8(static_cast<char>(mask))));
  }

  static D dzero() { return _mm256_setzero_si256(); }
  static __m256i bcast(const uint32_t *x) { return _mm256_set1_epi32(static_cast<int>(*x)); }

  // Compilers turn a chain of integer additions into a tree and spill every product on the way.
  static __m256i in_order(__m256i v) {
    __asm__("" : "+x"(v));
    return v;
  }

#ifdef INSULA_VNNI256
  static __m256i dpbusd(__m256i d, __m256i w, const uint32_t *x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(d, w, bcast(x));
#else
    __asm__("vpdpbusd %2%{1to8%}, %1, %0" : "+v"(d) : "v"(w), "m"(*x));
    return d;
#endif
  }
  static constexpr bool kDot16 = false; // int16 meets int8 as two bytes
  static constexpr int defer(int) { return 64; }
  template <int at> static D dot(D d, B w, const uint32_t *x) { return dpbusd(d, w, x + at); }
  static constexpr int s8_bias = 128;
  static B prep_s8(B w) { return _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80))); }
  template <int at> static D dot_s8(D d, B w, const uint32_t *x) { return dot<at>(d, w, x); }
  static I widen(D d) { return d; }
  static Sc scale_u8(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  }
  static Sc scale_low4(const uint8_t *p) {
    return _mm256_and_si256(scale_u8(p), _mm256_set1_epi32(15));
  }
  static Sc scale_s8(const uint8_t *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  }
  static I scale_add(I s, D d, Sc sc) {
    return in_order(_mm256_add_epi32(s, _mm256_mullo_epi32(sc, d)));
  }
#else
  // int16 times int8: maddubs would saturate.
  static constexpr bool kDot16 = true;
  struct Sum16 {
    __m256i lo, hi;
  }; // of pairs, of lanes 0 to 3 and of lanes 4 to 7
  struct Words16 {
    __m256i lo, hi;
  }; // 4 k of as many lanes each
  static Sum16 zero16() { return {izero(), izero()}; }
  static Words16 load16(const uint8_t *p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 16)))};
  }
  static Sum16 dot16(Sum16 s, Words16 w, const uint8_t *x) { // with four int16
    long long four;
    std::memcpy(&four, x, 8);
    const __m256i q = _mm256_set1_epi64x(four);
    return {in_order(_mm256_add_epi32(s.lo, _mm256_madd_epi16(w.lo, q))),
            in_order(_mm256_add_epi32(s.hi, _mm256_madd_epi16(w.hi, q)))};
  }
  static I total16(Sum16 s) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(s.lo, s.hi), 0xd8);
  }
  static void store_i16(int16_t *p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  // Pair sums stay below 2^15 for this many products of an unsigned weight and an int8.
  static constexpr int defer(int umax) {
    int n = 32767 / (umax * 254);
    return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
  }
  template <int at> static D dot(D d, B w, const uint32_t *x) {
    return in_order(_mm256_add_epi16(d, _mm256_maddubs_epi16(w, bcast(x + at))));
  }
  // |w| * sign(x): 128 * 127 * 2 still fits, where u8 weights above 127 would saturate.
  static constexpr int s8_bias = 0;
  static B prep_s8(B w) { return w; }
  template <int at> static D dot_s8(D d, B w, const uint32_t *x) {
    return in_order(_mm256_add_epi16(
        d, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(bcast(x + at), w))));
  }
  static I widen(D d) { return _mm256_madd_epi16(d, _mm256_set1_epi16(1)); }
  static __m128i twice(const uint8_t *p) {
    __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return _mm_unpacklo_epi8(a, a);
  }
  static Sc scale_u8(const uint8_t *p) { return _mm256_cvtepu8_epi16(twice(p)); }
  static Sc scale_low4(const uint8_t *p) {
    return _mm256_and_si256(scale_u8(p), _mm256_set1_epi16(15));
  }
  static Sc scale_s8(const uint8_t *p) { return _mm256_cvtepi8_epi16(twice(p)); }
  static I scale_add(I s, D d, Sc sc) {
    return in_order(_mm256_add_epi32(s, _mm256_madd_epi16(d, sc)));
  }
#endif

  static __m128i pairs(const uint8_t *p) {
    return _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)),
                             _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p + 16)));
  }
  static P16 pairs_u8(const uint8_t *p) { return _mm256_cvtepu8_epi16(pairs(p)); }
  static P16 pairs_high4(const uint8_t *p) { return _mm256_srli_epi16(pairs_u8(p), 4); }
  static P16 pairs_s16(const uint8_t *p) { // already such
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  }
  static P16 pairs_s8(const uint8_t *p) { return _mm256_cvtepi8_epi16(pairs(p)); }
  static I madd16(I acc, P16 w, const uint32_t *x) {
#if defined(INSULA_VNNI256) && defined(__AVXVNNI__)
    return in_order(_mm256_dpwssd_avx_epi32(acc, w, bcast(x)));
#elif defined(INSULA_VNNI256)
    __asm__("vpdpwssd %2%{1to8%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*x));
    return acc;
#else
    return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(w, bcast(x))));
#endif
  }
  // As an instruction: GCC takes a function that only prefetches for one without effect.
  static void prefetch(const void *p) {
    __asm__ volatile("prefetcht0 %0" ::"m"(*static_cast<const char *>(p)));
  }
};

} // namespace
