// Matrix products: int8 (or float32) activation rows against one packed panel of 16 output rows.
//
// The order of float operations is fixed per format and independent of M:
//   formats of 32, symmetric:  acc = fma(float(dot - zero*sum), D*d, acc)
//   formats of 32 with a min:  acc = fma(d, fma(D, float(dot), Min*float(sum)), acc)
//   256 with mins (Q2_K, Q4_K, Q5_K):
//                acc = fma(d, D*float(s) - DMin*float(mins), acc)   (one rounding for the fms)
//   256 without (Q3_K, Q6_K, IQ4_XS):  acc = fma(d*D, float(s - zero*mins), acc)
//   I16: acc = fma(D*d, float(dot), acc)
//   float formats: acc = fma(x[k], w[k], acc), k ascending
// D, DMin, Min are the weight block's, d the activation block's; dot, s, mins, sum exact integers.
#include <type_traits>

#include "../quants/codebooks.h"

#define INSULA_INLINE inline __attribute__((always_inline))

namespace {

using insula::ActForm;
using insula::Acts;
using insula::kPanel;
using insula::Layout;

constexpr int H = kPanel / V::W; // registers a panel
constexpr int kPrefetch = 2048;  // bytes ahead

template <int i> struct Ic {
  static constexpr int value = i;
};
template <int n, class Fn> INSULA_INLINE void unroll(Fn &&f) {
  if constexpr (n > 0) {
    unroll<n - 1>(f);
    f(Ic<n - 1>{});
  }
}

template <Layout L> constexpr int fifth_kind() { // 0: four bits, 1: a fifth, 2: fifth and sixth
  return L == Layout::Q5_0 || L == Layout::Q5_1 || L == Layout::Q5_K ? 1
         : L == Layout::Q6_K                                         ? 2
                                                                     : 0;
}
template <Layout L> constexpr bool two_bits() { return L == Layout::Q2_K || L == Layout::Q3_K; }
template <Layout L> constexpr int umax() {
  return fifth_kind<L>() == 1   ? 31
         : fifth_kind<L>() == 2 ? 63
         : L == Layout::Q2_K    ? 3
         : L == Layout::Q3_K    ? 7
         : L == Layout::MXFP4   ? 24
                                : 15;
}

// The codebook of ggml's IQ4 fills an int8: its values go the way of Q8_0's quants, shifted by
// V::s8_bias where a dot wants unsigned weights. MXFP4's become unsigned with a shift of 12.
template <Layout L> constexpr bool iq4() { return L == Layout::IQ4_NL || L == Layout::IQ4_XS; }
template <Layout L> constexpr bool codebook() { return iq4<L>() || L == Layout::MXFP4; }
struct Codebook {
  alignas(16) uint8_t value[16];
};
template <Layout L> constexpr Codebook make_codebook() {
  Codebook c{};
  for (int i = 0; i < 16; ++i)
    c.value[i] = static_cast<uint8_t>(iq4<L>() ? insula::quants::kIQ4[i] + V::s8_bias
                                               : insula::quants::kMXFP4[i] + 12);
  return c;
}
template <Layout L> constexpr Codebook kCodebook = make_codebook<L>();

// What a stored quant is too large by in a format of 32 without mins.
template <Layout L> constexpr int zero_32() {
  return L == Layout::Q4_0 ? 8 : L == Layout::Q5_0 ? 16 : L == Layout::MXFP4 ? 12 : V::s8_bias;
}

// A panel's block of 256: sub-blocks of S, where their quants, high bits and scales lie, and the
// power of two that stored quants are too large by (-1: none).
template <Layout L> struct Super {
  static constexpr bool mins = L == Layout::Q2_K || L == Layout::Q4_K || L == Layout::Q5_K;
  static constexpr int S = two_bits<L>() || L == Layout::Q6_K ? 16 : 32;
  static constexpr int subs = 256 / S;
  static constexpr int quants = two_bits<L>() ? 64 : 8 * S; // bytes of a sub-block
  static constexpr int high = two_bits<L>() ? 1024 : 2048;
  static constexpr int meta = L == Layout::Q2_K   ? 1024
                              : L == Layout::Q3_K ? 1536
                              : L == Layout::Q5_K ? 2560
                              : L == Layout::Q6_K ? 3072
                                                  : 2048;
  static constexpr int zero_shift = L == Layout::Q3_K               ? 2
                                    : L == Layout::Q6_K             ? 5
                                    : iq4<L>() && V::s8_bias == 128 ? 7
                                                                    : -1;
  static constexpr int together = L == Layout::Q3_K ? 2 : 1; // sub-blocks that share high bits
};

// The two groups of 4 k that share a vector of nibbles; `w` at the sub-block, `h` at its high bits,
// which two sub-blocks of Q3_K share: `odd` for the second.
template <Layout L, int v, int odd = 0>
INSULA_INLINE void groups(const uint8_t *w, const uint8_t *h, V::B &lo, V::B &hi) {
  if constexpr (two_bits<L>()) {
    V::B q = V::loadb(w);
    lo = V::masked(V::template shift<-2 * v>(q), 3);
    hi = V::masked(V::template shift<-2 * v - 4>(q), 3);
    if constexpr (L == Layout::Q3_K) {
      V::B b = V::loadb(h);
      lo = V::or_masked(lo, V::template shift<2 - 4 * odd - v>(b), 4);
      hi = V::or_masked(hi, V::template shift<-4 * odd - v>(b), 4);
    }
    return;
  }
  V::B q = V::loadb(w + v * 64);
  lo = V::low4(q);
  hi = V::high4(q);
  if constexpr (fifth_kind<L>() == 1) {
    V::B b = V::loadb(h);
    lo = V::or_masked(lo, V::template shift<4 - v>(b), 0x10);
    hi = V::or_masked(hi, V::template shift<-v>(b), 0x10);
  } else if constexpr (fifth_kind<L>() == 2) {
    V::B b = V::loadb(h);
    lo = V::or_masked(lo, V::template shift<4 - 4 * v>(b), 0x30);
    hi = V::or_masked(hi, V::template shift<2 - 4 * v>(b), 0x30);
  } else if constexpr (codebook<L>()) {
    const V::B t = V::table(kCodebook<L>.value);
    lo = V::lookup(t, lo);
    hi = V::lookup(t, hi);
  }
}

// Integer sums of a tile's rows: one accumulator for each, or one for two where the level
// multiplies two at once. W is V; as a parameter, since only such a level has what Two needs.
template <int M, class W> struct One {
  static constexpr int n = M;
  using I = typename W::I;
  using D = typename W::D;
  using Sc = typename W::Sc;
  static I zero() { return W::izero(); }
  static I add(I s, D d) { return W::iadd(s, W::widen(d)); }
  static Sc scale(Sc s) { return s; }
  static I scale_add(I s, D d, Sc sc) { return W::scale_add(s, d, sc); }
  static I row(const I *s, int m) { return s[m]; }
};
template <int M, class W> struct Two {
  static constexpr int n = (M + 1) / 2;
  using I = typename W::Pair;
  using D = I;
  using Sc = I;
  static I zero() { return W::pzero(); }
  static I add(I s, D d) { return W::padd(s, d); }
  static Sc scale(typename W::Sc s) { return W::twice(s); }
  static I scale_add(I s, D d, Sc sc) { return W::pscale_add(s, d, sc); }
  static typename W::I row(const I *s, int m) {
    return m % 2 == 0 ? W::first(s[m / 2]) : W::second(s[m / 2]);
  }
};
constexpr bool paired(int M, int R) {
  return V::kPairFrom != 0 && R == V::kRows && M >= V::kPairFrom;
}
template <int M, int R> using Sums = std::conditional_t<paired(M, R), Two<M, V>, One<M, V>>;

template <Layout L, int at> INSULA_INLINE V::D dot(V::D d, V::B w, const uint32_t *x) {
  if constexpr (iq4<L>())
    return V::dot_s8<at>(d, w, x);
  else
    return V::dot<at>(d, w, x);
}

// d += words k and k + 1 of all rows, two at a time, against the same of the weights.
template <int k, int R, int n, class W>
INSULA_INLINE void dot_pairs(typename W::Pair (&d)[n], V::B w0, V::B w1, const uint32_t *x) {
  const auto w = W::weave(w0, w1);
  for (int p = 0; p < n; ++p)
    d[p] = W::mmla(d[p], w, x + place(k, static_cast<size_t>(2 * p), R));
}

// Dots of one sub-block of S k for M rows; `sink` takes the accumulators whenever they are full.
template <Layout L, int S, int M, int R, int odd = 0, class Sink>
INSULA_INLINE void dots(const uint8_t *w, const uint8_t *h, const uint32_t *x, Sink &&sink) {
  constexpr int kDefer = V::defer(iq4<L>() ? 127 : umax<L>());
  V::D d[M];
  for (int m = 0; m < M; ++m)
    d[m] = V::dzero();
  unroll<S / 8>([&](auto vc) __attribute__((always_inline)) {
    constexpr int v = decltype(vc)::value;
    V::B lo, hi;
    groups<L, v, odd>(w, h, lo, hi);
    unroll<M>([&](auto mc) __attribute__((always_inline)) {
      constexpr int m = decltype(mc)::value;
      d[m] = dot<L, place(v, m, R)>(d[m], lo, x);
      if constexpr (kDefer == 1)
        sink(m, d[m]), d[m] = V::dzero();
      d[m] = dot<L, place(S / 8 + v, m, R)>(d[m], hi, x);
    });
    constexpr int done = 2 * (v + 1);
    if constexpr (kDefer == 1 || done % kDefer == 0 || done == S / 4)
      for (int m = 0; m < M; ++m) {
        sink(m, d[m]);
        d[m] = V::dzero();
      }
  });
}

template <Layout L, int S, int n, int R, int odd, class W, class Sink>
INSULA_INLINE void pair_dots(const uint8_t *w, const uint8_t *h, const uint32_t *x, Sink &&sink) {
  typename W::Pair d[n];
  for (int p = 0; p < n; ++p)
    d[p] = W::pzero();
  unroll<S / 16>([&](auto jc) __attribute__((always_inline)) {
    constexpr int v = 2 * decltype(jc)::value;
    V::B lo0, hi0, lo1, hi1;
    groups<L, v, odd>(w, h, lo0, hi0);
    groups<L, v + 1, odd>(w, h, lo1, hi1);
    dot_pairs<v, R, n, W>(d, lo0, lo1, x);
    dot_pairs<S / 8 + v, R, n, W>(d, hi0, hi1, x);
  });
  for (int p = 0; p < n; ++p)
    sink(p, d[p]);
}

template <int M, int R> INSULA_INLINE void dots_s8(const uint8_t *w, const uint32_t *x, V::I s[M]) {
  V::D d[M];
  for (int m = 0; m < M; ++m)
    s[m] = V::izero(), d[m] = V::dzero();
  unroll<8>([&](auto vc) __attribute__((always_inline)) {
    constexpr int v = decltype(vc)::value;
    V::B q = V::prep_s8(V::loadb(w + v * 64));
    unroll<M>([&](auto mc) __attribute__((always_inline)) {
      constexpr int m = decltype(mc)::value;
      d[m] = V::dot_s8<place(v, m, R)>(d[m], q, x);
      if constexpr (V::defer(127) == 1) {
        s[m] = V::iadd(s[m], V::widen(d[m]));
        d[m] = V::dzero();
      }
    });
  });
  if constexpr (V::defer(127) != 1)
    for (int m = 0; m < M; ++m)
      s[m] = V::widen(d[m]);
}

template <int n, int R, class W>
INSULA_INLINE void pair_dots_s8(const uint8_t *w, const uint32_t *x, typename W::Pair (&d)[n]) {
  unroll<4>([&](auto jc) __attribute__((always_inline)) {
    constexpr int v = 2 * decltype(jc)::value;
    dot_pairs<v, R, n, W>(d, V::loadb(w + v * 64), V::loadb(w + (v + 1) * 64), x);
  });
}

template <Layout L, int M, int R, bool Ahead>
void matmul_32(const uint8_t *panel, size_t K, const Acts &a, float *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  const size_t blocks = K / 32;
  const uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  for (int i = 0; i < M * kPanel; ++i)
    out[i] = 0;
  constexpr size_t run = M <= 2 ? 1 : 8; // blocks in a row, then the panel's other lanes
  for (size_t b0 = 0; b0 < blocks; b0 += run) {
    const size_t b1 = b0 + run < blocks ? b0 + run : blocks;
    for (int h = 0; h < H; ++h) {
      V::F acc[M];
      for (int m = 0; m < M; ++m)
        acc[m] = V::loadf(out + m * kPanel + h * V::W);
      for (size_t b = b0; b < b1; ++b) {
        const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
        const uint8_t *wh = w + h * V::W * 4;
        const uint32_t *x = a.q + b * 8 * R;
        const float *xd = a.d + b * R;
        const uint32_t *xs = a.sums + b * R;
        if (Ahead) {
          constexpr size_t each = static_cast<size_t>(li.main_bytes) / H;
          const uint8_t *next = panel + (b0 + 8) * static_cast<size_t>(li.main_bytes) +
                                (static_cast<size_t>(h) * (b1 - b0) + (b - b0)) * each;
          for (size_t p = 0; p < each; p += 64)
            V::prefetch(next + p);
          if constexpr (li.scale_bytes != 0)
            V::prefetch(scales + insula::panel_bytes(L, K) +
                        b * static_cast<size_t>(li.scale_bytes));
        }
        using Sum = Sums<M, R>;
        typename Sum::I s[Sum::n];
        for (int i = 0; i < Sum::n; ++i)
          s[i] = Sum::zero();
        const uint8_t *high = w + 256 + h * V::W * 4;
        auto sink = [&](int i, typename Sum::D d)
                        __attribute__((always_inline)) { s[i] = Sum::add(s[i], d); };
        if constexpr (L == Layout::Q8_0 && paired(M, R))
          pair_dots_s8<Sum::n, R, V>(wh, x, s);
        else if constexpr (L == Layout::Q8_0)
          dots_s8<M, R>(wh, x, s);
        else if constexpr (paired(M, R))
          pair_dots<L, 32, Sum::n, R, 0, V>(wh, high, x, sink);
        else
          dots<L, 32, M, R>(wh, high, x, sink);
        if constexpr (L == Layout::Q4_1 || L == Layout::Q5_1) {
          const uint16_t *meta =
              reinterpret_cast<const uint16_t *>(w + li.main_bytes - 64) + h * V::W;
          V::F D = V::load_h(meta), Mn = V::load_h(meta + kPanel);
          for (int m = 0; m < M; ++m) {
            const V::F sum = V::cvt(V::iset1(static_cast<int32_t>(xs[m])));
            V::F t = V::fma(D, V::cvt(Sum::row(s, m)), V::mul(Mn, sum));
            acc[m] = V::fma(V::set1(xd[m]), t, acc[m]);
          }
        } else {
          constexpr int zero = zero_32<L>();
          const uint8_t *sp = scales + b * static_cast<size_t>(li.scale_bytes);
          V::F D;
          if constexpr (L == Layout::MXFP4)
            D = V::load_e8m0(sp + h * V::W);
          else
            D = V::load_h(reinterpret_cast<const uint16_t *>(sp) + h * V::W);
          for (int m = 0; m < M; ++m) {
            V::I t = Sum::row(s, m);
            if constexpr (zero != 0)
              t = V::isub(t, V::iset1(zero * static_cast<int32_t>(xs[m])));
            acc[m] = V::fma(V::cvt(t), V::mul(D, V::set1(xd[m])), acc[m]);
          }
        }
      }
      for (int m = 0; m < M; ++m)
        V::storef(out + m * kPanel + h * V::W, acc[m]);
    }
  }
}

template <Layout L, int M, int R, bool Ahead>
void matmul_256(const uint8_t *panel, size_t K, const Acts &a, float *out) {
  constexpr auto &li = insula::kLayoutInfo[static_cast<int>(L)];
  using P = Super<L>;
  constexpr int S = P::S, kSubs = P::subs, kMeta = P::meta, kTogether = P::together;
  const size_t blocks = K / 256;
  const uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  for (int i = 0; i < M * kPanel; ++i)
    out[i] = 0;
  for (size_t b = 0; b < blocks; ++b) {
    const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    for (int h = 0; h < H; ++h) {
      using Sum = Sums<M, R>;
      typename Sum::I s[Sum::n];
      for (int i = 0; i < Sum::n; ++i)
        s[i] = Sum::zero();
      auto sub_block = [&](int j, auto oddc) __attribute__((always_inline)) {
        if (Ahead) {
          constexpr int lines = (li.main_bytes + 63) / 64, steps = kSubs * H;
          const int i = h * kSubs + j;
          for (int l = i * lines / steps; l < (i + 1) * lines / steps; ++l)
            V::prefetch(w + kPrefetch + l * 64);
          if (li.scale_bytes != 0 && i == 0)
            V::prefetch(scales + insula::panel_bytes(L, K) + b * 32);
        }
        const uint32_t *x = a.q + (b * 64 + static_cast<size_t>(j * S / 4)) * R;
        const uint8_t *sp = w + kMeta + 16 * j + h * V::W;
        V::Sc sc;
        if constexpr (L == Layout::Q2_K)
          sc = V::scale_low4(sp);
        else if constexpr (P::mins)
          sc = V::scale_u8(sp);
        else
          sc = V::scale_s8(sp);
        const typename Sum::Sc scale = Sum::scale(sc);
        auto sink = [&](int i, typename Sum::D d)
                        __attribute__((always_inline)) { s[i] = Sum::scale_add(s[i], d, scale); };
        constexpr int odd = decltype(oddc)::value;
        const uint8_t *q = w + j * P::quants + h * V::W * 4;
        const uint8_t *high = w + P::high + j / kTogether * 64 + h * V::W * 4;
        if constexpr (paired(M, R))
          pair_dots<L, S, Sum::n, R, odd, V>(q, high, x, sink);
        else
          dots<L, S, M, R, odd>(q, high, x, sink);
      };
      for (int j = 0; j < kSubs; j += kTogether)
        unroll<kTogether>([&](auto oddc) __attribute__((always_inline)) {
          sub_block(j + decltype(oddc)::value, oddc);
        });
      V::I mi[M];
      for (int m = 0; m < M; ++m)
        mi[m] = V::izero();
      for (int p = 0; p < (P::mins || P::zero_shift >= 0 ? kSubs / 2 : 0); ++p) {
        V::P16 pr;
        if constexpr (L == Layout::Q2_K)
          pr = V::pairs_high4(w + kMeta + 32 * p + h * V::W);
        else if constexpr (P::mins)
          pr = V::pairs_u8(w + kMeta + 128 + 32 * p + h * V::W);
        else
          pr = V::pairs_s8(w + kMeta + 32 * p + h * V::W);
        const size_t first = static_cast<size_t>(S == 16 ? p : 8 + p);
        for (int m = 0; m < M; ++m)
          mi[m] = V::madd16(mi[m], pr,
                            a.sums + (b * insula::kSums256 + first) * R + static_cast<size_t>(m));
      }
      for (int m = 0; m < M; ++m) {
        float *o = out + m * kPanel + h * V::W;
        V::F d = V::set1(a.d[b * R + static_cast<size_t>(m)]), acc = V::loadf(o);
        if constexpr (!P::mins) {
          V::F D = V::load_h(reinterpret_cast<const uint16_t *>(scales + b * 32) + h * V::W);
          V::I t = Sum::row(s, m);
          if constexpr (P::zero_shift >= 0)
            t = V::isub(t, V::template isll<P::zero_shift>(mi[m]));
          acc = V::fma(V::mul(d, D), V::cvt(t), acc);
        } else {
          const uint16_t *dp = reinterpret_cast<const uint16_t *>(w + kMeta + 256) + h * V::W;
          V::F t = V::fms(V::load_h(dp), V::cvt(Sum::row(s, m)),
                          V::mul(V::load_h(dp + kPanel), V::cvt(mi[m])));
          acc = V::fma(d, t, acc);
        }
        V::storef(o, acc);
      }
    }
  }
}

template <int M, int R, bool Ahead>
void matmul_16(const uint8_t *panel, size_t K, const Acts &a, float *out) {
  constexpr int words = insula::kI16Block / 2;
  constexpr size_t bytes = insula::kI16Block * 2 * kPanel;
  const size_t blocks = K / insula::kI16Block;
  const float *scales = reinterpret_cast<const float *>(panel + blocks * bytes);
  for (int h = 0; h < H; ++h) {
    V::F acc[M];
    for (int m = 0; m < M; ++m)
      acc[m] = V::set1(0);
    for (size_t b = 0; b < blocks; ++b) {
      const uint8_t *w = panel + b * bytes + h * V::W * 4;
      const uint32_t *x = a.q + b * words * R;
      V::I s[M];
      for (int m = 0; m < M; ++m)
        s[m] = V::izero();
      for (int v = 0; v < words; v += 4) {
        if (Ahead)
          for (int p = h; p < 4; p += H)
            V::prefetch(w + kPrefetch + (v + p) * 64);
        unroll<4>([&](auto vc) __attribute__((always_inline)) {
          constexpr int at = decltype(vc)::value;
          const V::P16 q = V::pairs_s16(w + (v + at) * 64);
          for (int m = 0; m < M; ++m)
            s[m] = V::madd16(s[m], q, x + (v + at) * R + m);
        });
      }
      const V::F D = V::loadf(scales + b * kPanel + h * V::W);
      for (int m = 0; m < M; ++m)
        acc[m] =
            V::fma(V::mul(D, V::set1(a.d[b * R + static_cast<size_t>(m)])), V::cvt(s[m]), acc[m]);
    }
    for (int m = 0; m < M; ++m)
      V::storef(out + m * kPanel + h * V::W, acc[m]);
  }
}

template <Layout L> INSULA_INLINE V::F load_weight(const uint8_t *p, int lane) {
  if constexpr (L == Layout::F32)
    return V::loadf(reinterpret_cast<const float *>(p) + lane);
  else if constexpr (L == Layout::F16)
    return V::load_h(reinterpret_cast<const uint16_t *>(p) + lane);
  else
    return V::load_bf(reinterpret_cast<const uint16_t *>(p) + lane);
}

template <Layout L, int M, int R, bool Ahead>
void matmul_f(const uint8_t *panel, size_t K, const Acts &a, float *out) {
  if constexpr (M * H > 24) { // more sums than registers
    Acts rest = a;
    rest.f += 4;
    matmul_f<L, 4, R, Ahead>(panel, K, a, out);
    return matmul_f<L, M - 4, R, false>(panel, K, rest, out + 4 * kPanel);
  }
  constexpr size_t step = L == Layout::F32 ? 64 : 32;
  V::F acc[M][H];
  for (int m = 0; m < M; ++m)
    for (int h = 0; h < H; ++h)
      acc[m][h] = V::set1(0);
  for (size_t k = 0; k < K; ++k) {
    const uint8_t *w = panel + k * step;
    if (Ahead)
      V::prefetch(w + kPrefetch);
    for (int h = 0; h < H; ++h) {
      V::F wv = load_weight<L>(w, h * V::W);
      for (int m = 0; m < M; ++m)
        acc[m][h] = V::fma(V::set1(a.f[k * R + static_cast<size_t>(m)]), wv, acc[m][h]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int h = 0; h < H; ++h)
      V::storef(out + m * kPanel + h * V::W, acc[m][h]);
}

template <int M, int R, bool Ahead>
void matmul_rows(Layout l, const uint8_t *w, size_t K, const Acts &a, float *out) {
  switch (l) {
  case Layout::F32:
    return matmul_f<Layout::F32, M, R, Ahead>(w, K, a, out);
  case Layout::F16:
    return matmul_f<Layout::F16, M, R, Ahead>(w, K, a, out);
  case Layout::BF16:
    return matmul_f<Layout::BF16, M, R, Ahead>(w, K, a, out);
  case Layout::Q4_0:
    return matmul_32<Layout::Q4_0, M, R, Ahead>(w, K, a, out);
  case Layout::Q4_1:
    return matmul_32<Layout::Q4_1, M, R, Ahead>(w, K, a, out);
  case Layout::Q5_0:
    return matmul_32<Layout::Q5_0, M, R, Ahead>(w, K, a, out);
  case Layout::Q5_1:
    return matmul_32<Layout::Q5_1, M, R, Ahead>(w, K, a, out);
  case Layout::Q8_0:
    return matmul_32<Layout::Q8_0, M, R, Ahead>(w, K, a, out);
  case Layout::IQ4_NL:
    return matmul_32<Layout::IQ4_NL, M, R, Ahead>(w, K, a, out);
  case Layout::MXFP4:
    return matmul_32<Layout::MXFP4, M, R, Ahead>(w, K, a, out);
  case Layout::Q2_K:
    return matmul_256<Layout::Q2_K, M, R, Ahead>(w, K, a, out);
  case Layout::Q3_K:
    return matmul_256<Layout::Q3_K, M, R, Ahead>(w, K, a, out);
  case Layout::IQ4_XS:
    return matmul_256<Layout::IQ4_XS, M, R, Ahead>(w, K, a, out);
  case Layout::Q4_K:
    return matmul_256<Layout::Q4_K, M, R, Ahead>(w, K, a, out);
  case Layout::Q5_K:
    return matmul_256<Layout::Q5_K, M, R, Ahead>(w, K, a, out);
  case Layout::Q6_K:
    return matmul_256<Layout::Q6_K, M, R, Ahead>(w, K, a, out);
  case Layout::I16:
    return matmul_16<M, R, Ahead>(w, K, a, out);
  }
}

INSULA_INLINE Acts tile_of(const insula::ActSet &s, Layout l, int tile) {
  Acts a = insula::info(l).act == ActForm::A32    ? s.a32
           : insula::info(l).act == ActForm::A256 ? s.a256
           : insula::info(l).act == ActForm::A16  ? s.a16
                                                  : s.f32;
  size_t t = static_cast<size_t>(tile);
  if (a.q)
    a.q += t * a.q_tile, a.d += t * a.d_tile, a.sums += t * a.sums_tile;
  if (a.f)
    a.f += t * a.f_tile;
  return a;
}

// `first`: the panels come from memory, so the next one's are asked for; later tiles of the same
// panels find them in the cache. Less than a whole tile is the first one or the last.
template <int M = V::kRows>
INSULA_INLINE void tile_rows(Layout l, int rows, bool first, const uint8_t *w, size_t K,
                             const Acts &a, float *out) {
  if (rows == M) {
    if constexpr (M == V::kRows)
      if (!first)
        return matmul_rows<M, V::kRows, false>(l, w, K, a, out);
    return matmul_rows<M, V::kRows, true>(l, w, K, a, out);
  }
  if constexpr (M > 1)
    tile_rows<M - 1>(l, rows, first, w, K, a, out);
}

INSULA_INLINE void tile(Layout l, int R, int rows, bool first, const uint8_t *w, size_t K,
                        const Acts &a, float *out) {
  if (R == 1)
    matmul_rows<1, 1, true>(l, w, K, a, out);
  else
    tile_rows(l, rows, first, w, K, a, out);
}

std::atomic<uint64_t> g_calls{0}, g_tiles{0};

// What follows a panel's product t (and t2, of the second weight): M rows from m0 of the job's.
INSULA_INLINE void finish_panel(const insula::MatJob &j, int first, int m0, int M, float *t,
                                float *t2) {
  const int n = j.columns - first < kPanel ? j.columns - first : kPanel;
  auto add_bias = [&](const float *bias, float *y) {
    for (int m = 0; bias && m < M; ++m)
      for (int i = 0; i < n; ++i)
        y[m * kPanel + i] += bias[first + i];
  };
  add_bias(j.bias, t);
  if (j.then >= 0)
    act(t, static_cast<size_t>(M * kPanel), j.then, t);
  if (j.w2) {
    add_bias(j.bias2, t2);
    glu(t, t2, static_cast<size_t>(M * kPanel), j.act, t);
  }
  for (int m = 0; m < M; ++m) {
    float *y = j.dst + static_cast<size_t>(m0 + m) * j.dst_stride + first;
    if (n == kPanel)
      for (int i = 0; i < kPanel; i += V::W) {
        const V::F v = V::loadf(t + m * kPanel + i);
        V::storef(y + i, j.add ? V::add(V::loadf(y + i), v) : v);
      }
    else if (j.add)
      for (int i = 0; i < n; ++i)
        y[i] += t[m * kPanel + i];
    else
      for (int i = 0; i < n; ++i)
        y[i] = t[m * kPanel + i];
  }
}

// A run of neighbouring panels for all rows, with what follows the product.
void matmul(const insula::MatJob &j) {
  g_calls.fetch_add(1, std::memory_order_relaxed);
  const size_t stride = insula::panel_bytes(j.layout, j.K);
  const size_t stride2 = j.w2 ? insula::panel_bytes(j.layout2, j.K) : 0;
  alignas(64) float t[V::kRows * kPanel], t2[V::kRows * kPanel];
  const int R = j.acts->R;
  for (int m0 = 0; m0 < j.rows; m0 += R) {
    const int M = j.rows - m0 < R ? j.rows - m0 : R;
    const Acts a = tile_of(*j.acts, j.layout, m0 / R);
    if (paired(M, R) && a.q)
      g_tiles.fetch_add(static_cast<uint64_t>(j.panels), std::memory_order_relaxed);
    for (int p = j.first_panel; p < j.first_panel + j.panels; ++p) {
      tile(j.layout, R, M, m0 == 0, j.w + static_cast<size_t>(p) * stride, j.K, a, t);
      if (j.w2)
        tile(j.layout2, R, M, m0 == 0, j.w2 + static_cast<size_t>(p) * stride2, j.K,
             tile_of(*j.acts, j.layout2, m0 / R), t2);
      finish_panel(j, p * kPanel, m0, M, t, t2);
    }
  }
}

} // namespace
