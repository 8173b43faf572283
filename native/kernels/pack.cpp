// Packing from file order into the panel layouts, and the way back for single rows.
// Plain integer work on 4-byte words: a quant is moved, never rounded.
#include <cstring>

#include "layout.h"

#include "../quants/blocks.h"

namespace insula {
namespace {

uint32_t load32(const void *p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
void store32(void *p, uint32_t v) { std::memcpy(p, &v, 4); }

constexpr uint32_t kLow = 0x0f0f0f0f, kOnes = 0x01010101;

// Bits 0..3 to bit 0 of bytes 0..3.
uint32_t spread4(uint32_t b) { return (b & 1) | (b & 2) << 7 | (b & 4) << 14 | (b & 8) << 21; }

// Fifth bits of 32 elements (bit k of `bits`) in the packed order: one word per row.
uint32_t fifth_bits(uint32_t bits) {
  uint32_t out = 0;
  for (int g = 0; g < 8; ++g)
    out |= spread4(bits >> (4 * g) & 15) << g;
  return out;
}

void put_half(uint8_t *p, int r, const uint8_t *src) { std::memcpy(p + 2 * r, src, 2); }

// Scales and mins of a Q4_K / Q5_K block: 8 six-bit pairs in 12 bytes (ggml's get_scale_min_k4).
void scale_min(const uint8_t *s, uint8_t *sc, uint8_t *mn) {
  for (int j = 0; j < 4; ++j) {
    sc[j] = s[j] & 63;
    mn[j] = s[j + 4] & 63;
    sc[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
    mn[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}

// The nibbles of two neighbouring sub-blocks of 32, 32 bytes in the file.
void k_nibbles(const uint8_t *qs, int r, uint8_t *even, uint8_t *odd) {
  for (int v = 0; v < 4; ++v) {
    uint32_t a = load32(qs + 4 * v), b = load32(qs + 16 + 4 * v);
    store32(even + v * 64 + r * 4, (a & kLow) | (b & kLow) << 4);
    store32(odd + v * 64 + r * 4, (a >> 4 & kLow) | (b & ~kLow));
  }
}

void pack_k45(bool five, const uint8_t *s, int r, uint8_t *w) {
  // Q4_K: d, dmin, scales[12], qs[128].  Q5_K: d, dmin, scales[12], qh[32], qs[128].
  const uint8_t *qs = s + (five ? 48 : 16);
  uint8_t *meta = w + (five ? 2560 : 2048);
  uint8_t sc[8], mn[8];
  scale_min(s + 4, sc, mn);
  for (int j = 0; j < 8; ++j) {
    meta[16 * j + r] = sc[j];
    meta[128 + 16 * j + r] = mn[j];
  }
  put_half(meta + 256, r, s);
  put_half(meta + 288, r, s + 2);
  for (int p = 0; p < 4; ++p)
    k_nibbles(qs + 32 * p, r, w + 512 * p, w + 512 * p + 256);
  if (!five)
    return;
  for (int j = 0; j < 8; ++j) {
    uint32_t out = 0;
    for (int g = 0; g < 8; ++g)
      out |= (load32(s + 16 + 4 * g) >> j & kOnes) << g;
    store32(w + 2048 + 64 * j + 4 * r, out);
  }
}

// Two bits of 256 elements in the file's order (32 bytes hold 128: bits 2k,2k+1 are elements
// 32k..32k+31) as bytes.
void file_crumbs(const uint8_t *qs, uint8_t *q) {
  for (int k = 0; k < 256; ++k)
    q[k] = qs[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
}

// Two bits of sixteen elements in the packed order: one word per row.
uint32_t crumbs(const uint8_t *q) {
  uint32_t out = 0;
  for (int g = 0; g < 4; ++g)
    out |= load32(q + 4 * g) << (2 * g);
  return out;
}

void pack_q2(const uint8_t *s, int r, uint8_t *w) {
  // scales[16] (low nibble: scale, high nibble: min), qs[64], d, dmin.
  uint8_t q[256];
  file_crumbs(s + 16, q);
  for (int j = 0; j < 16; ++j) {
    store32(w + 64 * j + 4 * r, crumbs(q + 16 * j));
    w[1024 + 16 * j + r] = s[j];
  }
  put_half(w + 1280, r, s + 80);
  put_half(w + 1312, r, s + 82);
}

void pack_q3(const uint8_t *s, int r, uint8_t *w, uint8_t *scale) {
  // hmask[32] (bit k of byte j: the third bit of element 32k + j), qs[64], scales[12], d.
  uint8_t q[256];
  file_crumbs(s + 32, q);
  for (int j = 0; j < 16; ++j) {
    store32(w + 64 * j + 4 * r, crumbs(q + 16 * j));
    w[1536 + 16 * j + r] = static_cast<uint8_t>(quants::unpack_q3_scale(s + 96, j));
  }
  for (int p = 0; p < 8; ++p) {
    uint32_t out = 0;
    for (int g = 0; g < 8; ++g)
      out |= (load32(s + 4 * g) >> p & kOnes) << g;
    store32(w + 1024 + 64 * p + 4 * r, out);
  }
  put_half(scale, r, s + 108);
}

void pack_iq4_xs(const uint8_t *s, int r, uint8_t *w, uint8_t *scale) {
  // d, scales_h[2], scales_l[4], qs[128].
  for (int j = 0; j < 8; ++j) {
    for (int v = 0; v < 4; ++v)
      store32(w + 256 * j + v * 64 + r * 4, load32(s + 8 + 16 * j + 4 * v));
    const int low = s[4 + j / 2] >> (j % 2 * 4) & 15, high = s[2 + j / 4] >> (j % 4 * 2) & 3;
    w[2048 + 16 * j + r] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  put_half(scale, r, s);
}

void pack_q6(const uint8_t *s, int r, uint8_t *w, uint8_t *scale) {
  // ql[128], qh[64], scales[16], d.
  uint8_t q[256];
  for (int n = 0; n < 2; ++n) {
    const uint8_t *ql = s + 64 * n, *qh = s + 128 + 32 * n;
    uint8_t *o = q + 128 * n;
    for (int l = 0; l < 32; ++l) {
      o[l] = static_cast<uint8_t>((ql[l] & 15) | (qh[l] & 3) << 4);
      o[l + 32] = static_cast<uint8_t>((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4);
      o[l + 64] = static_cast<uint8_t>((ql[l] >> 4) | (qh[l] >> 4 & 3) << 4);
      o[l + 96] = static_cast<uint8_t>((ql[l + 32] >> 4) | (qh[l] >> 6) << 4);
    }
  }
  for (int j = 0; j < 16; ++j) {
    const uint8_t *o = q + 16 * j;
    uint32_t g[4]; // v0 low, v0 high, v1 low, v1 high: k = 0, 8, 4, 12
    for (int i = 0; i < 4; ++i)
      g[i] = load32(o + 8 * (i & 1) + 4 * (i >> 1));
    store32(w + j * 128 + r * 4, (g[0] & kLow) | (g[1] & kLow) << 4);
    store32(w + j * 128 + 64 + r * 4, (g[2] & kLow) | (g[3] & kLow) << 4);
    uint32_t h = 0;
    for (int i = 0; i < 4; ++i)
      h |= (g[i] >> 4 & 0x03030303u) << (2 * i);
    store32(w + 2048 + j * 64 + r * 4, h);
    w[3072 + 16 * j + r] = s[192 + j];
  }
  put_half(scale, r, s + 208);
}

// One block of one row of a format of 32. `w`: the block's main bytes, `sc`: its scale stream.
void pack_32(Layout l, const uint8_t *s, int r, uint8_t *w, uint8_t *sc) {
  switch (l) {
  case Layout::Q4_0:
  case Layout::IQ4_NL:
    put_half(sc, r, s);
    for (int v = 0; v < 4; ++v)
      store32(w + v * 64 + r * 4, load32(s + 2 + 4 * v));
    break;
  case Layout::Q4_1:
    put_half(w + 256, r, s);
    put_half(w + 288, r, s + 2);
    for (int v = 0; v < 4; ++v)
      store32(w + v * 64 + r * 4, load32(s + 4 + 4 * v));
    break;
  case Layout::Q5_0:
    put_half(sc, r, s);
    store32(w + 256 + r * 4, fifth_bits(load32(s + 2)));
    for (int v = 0; v < 4; ++v)
      store32(w + v * 64 + r * 4, load32(s + 6 + 4 * v));
    break;
  case Layout::Q5_1:
    put_half(w + 320, r, s);
    put_half(w + 352, r, s + 2);
    store32(w + 256 + r * 4, fifth_bits(load32(s + 4)));
    for (int v = 0; v < 4; ++v)
      store32(w + v * 64 + r * 4, load32(s + 8 + 4 * v));
    break;
  case Layout::MXFP4:
    sc[r] = s[0];
    for (int v = 0; v < 4; ++v)
      store32(w + v * 64 + r * 4, load32(s + 1 + 4 * v));
    break;
  default: // Q8_0
    put_half(sc, r, s);
    for (int v = 0; v < 8; ++v)
      store32(w + v * 64 + r * 4, load32(s + 2 + 4 * v));
    break;
  }
}

float half_at(const uint8_t *p, int r) {
  uint16_t h;
  std::memcpy(&h, p + 2 * r, 2);
  return half_to_float(h);
}

// Quant of element k (0..31) of row r in a nibble block of 32 at w.
int nibble(const uint8_t *w, int r, int k) {
  int v = (k & 15) >> 2;
  int b = w[v * 64 + r * 4 + (k & 3)];
  return k < 16 ? b & 15 : b >> 4;
}
// Two-bit quant of element k (0..255).
int crumb(const uint8_t *w, int r, int k) {
  return w[64 * (k >> 4) + r * 4 + (k & 3)] >> (2 * (k >> 2 & 3)) & 3;
}
int fifth(const uint8_t *h, int r, int k) { return (h[r * 4 + (k & 3)] >> (k >> 2) & 1) << 4; }

} // namespace

bool layout_of(int ggml_type, Layout *out) {
  for (int i = 0; i < kLayouts; ++i)
    if (kLayoutInfo[i].ggml_type == ggml_type) {
      *out = static_cast<Layout>(i);
      return true;
    }
  return false;
}

void pack_panel(Layout l, const uint8_t *const rows[kPanel], size_t K, uint8_t *panel) {
  const LayoutInfo &li = info(l);
  std::memset(panel, 0, panel_bytes(l, K));
  size_t blocks = K / static_cast<size_t>(li.block);
  if (l == Layout::I16) {
    float *scales = reinterpret_cast<float *>(panel + blocks * static_cast<size_t>(li.main_bytes));
    for (size_t r = 0; r < kPanel; ++r)
      for (size_t b = 0; rows[r] && b < blocks; ++b) {
        const uint8_t *s = rows[r] + b * static_cast<size_t>(li.file_bytes);
        uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes) + r * 4;
        for (size_t v = 0; v < kI16Block / 2; ++v)
          std::memcpy(w + v * 64, s + v * 4, 4);
        std::memcpy(scales + b * kPanel + r, s + kI16Block * 2, 4);
      }
    return;
  }
  if (li.act == ActForm::F32) {
    size_t e = static_cast<size_t>(li.file_bytes);
    for (int r = 0; r < kPanel; ++r)
      if (rows[r])
        for (size_t k = 0; k < K; ++k)
          std::memcpy(panel + (k * kPanel + static_cast<size_t>(r)) * e, rows[r] + k * e, e);
    return;
  }
  uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    uint8_t *sc = scales + b * static_cast<size_t>(li.scale_bytes);
    for (int r = 0; r < kPanel; ++r) {
      if (!rows[r])
        continue;
      const uint8_t *s = rows[r] + b * static_cast<size_t>(li.file_bytes);
      if (l == Layout::Q4_K || l == Layout::Q5_K)
        pack_k45(l == Layout::Q5_K, s, r, w);
      else if (l == Layout::Q6_K)
        pack_q6(s, r, w, sc);
      else if (l == Layout::Q2_K)
        pack_q2(s, r, w);
      else if (l == Layout::Q3_K)
        pack_q3(s, r, w, sc);
      else if (l == Layout::IQ4_XS)
        pack_iq4_xs(s, r, w, sc);
      else
        pack_32(l, s, r, w, sc);
    }
  }
}

void unpack_row(Layout l, const uint8_t *panel, int r, size_t K, float *out) {
  const LayoutInfo &li = info(l);
  size_t blocks = K / static_cast<size_t>(li.block);
  const uint8_t *scales = panel + blocks * static_cast<size_t>(li.main_bytes);
  for (size_t b = 0; b < blocks; ++b) {
    const uint8_t *w = panel + b * static_cast<size_t>(li.main_bytes);
    const uint8_t *sc = scales + b * static_cast<size_t>(li.scale_bytes);
    float *y = out + b * static_cast<size_t>(li.block);
    switch (l) {
    case Layout::F32:
      std::memcpy(y, w + 4 * r, 4);
      break;
    case Layout::F16:
      *y = half_at(w, r);
      break;
    case Layout::BF16: {
      uint32_t u = 0;
      std::memcpy(reinterpret_cast<uint8_t *>(&u) + 2, w + 2 * r, 2);
      std::memcpy(y, &u, 4);
      break;
    }
    case Layout::I16: {
      float d;
      std::memcpy(&d, sc + 4 * r, 4);
      for (int k = 0; k < kI16Block; ++k) {
        int16_t q;
        std::memcpy(&q, w + (k >> 1) * 64 + r * 4 + (k & 1) * 2, 2);
        y[k] = d * static_cast<float>(q);
      }
      break;
    }
    case Layout::Q4_0: {
      float d = half_at(sc, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(nibble(w, r, k) - 8);
      break;
    }
    case Layout::Q4_1: {
      float d = half_at(w + 256, r), m = half_at(w + 288, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(nibble(w, r, k)) + m;
      break;
    }
    case Layout::Q5_0: {
      float d = half_at(sc, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>((nibble(w, r, k) | fifth(w + 256, r, k)) - 16);
      break;
    }
    case Layout::Q5_1: {
      float d = half_at(w + 320, r), m = half_at(w + 352, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(nibble(w, r, k) | fifth(w + 256, r, k)) + m;
      break;
    }
    case Layout::Q8_0: {
      float d = half_at(sc, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(static_cast<int8_t>(w[(k >> 2) * 64 + r * 4 + (k & 3)]));
      break;
    }
    case Layout::IQ4_NL: {
      float d = half_at(sc, r);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(quants::kIQ4[nibble(w, r, k)]);
      break;
    }
    case Layout::MXFP4: {
      float d = quants::e8m0_half(sc[r]);
      for (int k = 0; k < 32; ++k)
        y[k] = d * static_cast<float>(quants::kMXFP4[nibble(w, r, k)]);
      break;
    }
    case Layout::Q2_K: {
      float d = half_at(w + 1280, r), dm = half_at(w + 1312, r);
      for (int k = 0; k < 256; ++k) {
        int both = w[1024 + 16 * (k >> 4) + r];
        float s = d * static_cast<float>(both & 15), m = dm * static_cast<float>(both >> 4);
        y[k] = s * static_cast<float>(crumb(w, r, k)) - m;
      }
      break;
    }
    case Layout::Q3_K: {
      float d = half_at(sc, r);
      for (int k = 0; k < 256; ++k) {
        int third = w[1024 + 64 * (k >> 5) + r * 4 + (k & 3)] >> (k >> 2 & 7) & 1;
        float s = d * static_cast<float>(static_cast<int8_t>(w[1536 + 16 * (k >> 4) + r]));
        y[k] = s * static_cast<float>((crumb(w, r, k) | third << 2) - 4);
      }
      break;
    }
    case Layout::IQ4_XS: {
      float d = half_at(sc, r);
      for (int k = 0; k < 256; ++k) {
        int j = k >> 5;
        float s = d * static_cast<float>(static_cast<int8_t>(w[2048 + 16 * j + r]));
        y[k] = s * static_cast<float>(quants::kIQ4[nibble(w + 256 * j, r, k & 31)]);
      }
      break;
    }
    case Layout::Q4_K:
    case Layout::Q5_K: {
      bool five = l == Layout::Q5_K;
      const uint8_t *meta = w + (five ? 2560 : 2048);
      float d = half_at(meta + 256, r), dm = half_at(meta + 288, r);
      for (int k = 0; k < 256; ++k) {
        int j = k >> 5, kk = k & 31, q = nibble(w + 256 * j, r, kk);
        if (five)
          q |= fifth(w + 2048 + 64 * j, r, kk);
        float s = d * static_cast<float>(meta[16 * j + r]);
        float m = dm * static_cast<float>(meta[128 + 16 * j + r]);
        y[k] = s * static_cast<float>(q) - m;
      }
      break;
    }
    case Layout::Q6_K: {
      float d = half_at(sc, r);
      for (int k = 0; k < 256; ++k) {
        int j = k >> 4, kk = k & 15, v = (kk & 7) >> 2, hi = kk >> 3;
        int lo = w[j * 128 + v * 64 + r * 4 + (kk & 3)] >> (4 * hi) & 15;
        int up = w[2048 + j * 64 + r * 4 + (kk & 3)] >> (2 * (2 * v + hi)) & 3;
        float s = d * static_cast<float>(static_cast<int8_t>(w[3072 + 16 * j + r]));
        y[k] = s * static_cast<float>((lo | up << 4) - 32);
      }
      break;
    }
    }
  }
}

float half_to_float(uint16_t h) {
  uint32_t s = static_cast<uint32_t>(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023, u;
  if (e == 31)
    u = s | 0x7f800000u | m << 13;
  else if (e)
    u = s | (e + 112) << 23 | m << 13;
  else { // subnormal halves are normal floats: m * 2^-24, exactly
    float f = static_cast<float>(m) * 5.9604644775390625e-8f;
    std::memcpy(&u, &f, 4);
    u |= s;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

uint16_t float_to_half(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  uint32_t s = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000u)
    return static_cast<uint16_t>(s | 0x7e00 | (a >> 13 & 0x3ff));
  if (a >= 0x477ff000u)
    return static_cast<uint16_t>(s | 0x7c00); // rounds to infinity
  if (a < 0x38800000u) {                      // subnormal half
    if (a < 0x33000000u)
      return static_cast<uint16_t>(s);
    uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffff) | 0x800000;
    uint32_t r = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
    if (rest > half || (rest == half && (r & 1)))
      ++r;
    return static_cast<uint16_t>(s | r);
  }
  uint32_t r = a - 0x38000000u;
  r += 0xfff + (r >> 13 & 1);
  return static_cast<uint16_t>(s | r >> 13);
}

} // namespace insula
