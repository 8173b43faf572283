// The block layouts of ggml's formats, byte for byte as they lie in a GGUF file.
//
// Owns: the structs and the half-precision conversions. Every struct has alignment 1, so a block
// may be read at any address. Source: ggml-common.h of ggml (MIT), which defines them.
#pragma once

#include "codebooks.h"

#include <bit>
#include <cstdint>

namespace insula::quants {

constexpr int kBlock = 32;  // elements of a legacy block
constexpr int kSuper = 256; // elements of a K-quant super-block

// IEEE 754 binary16 to binary32; exact. NaNs keep their payload.
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t rest = half & 0x7fff;
  // Normal numbers: move the fields, rebias the exponent by 112; infinities and NaNs by 224.
  const std::uint32_t bias = rest >= 0x7c00 ? 224u << 23 : 112u << 23;
  const float normal = std::bit_cast<float>((rest << 13) + bias);
  // Subnormal numbers count units of 2^-24.
  const float subnormal = static_cast<float>(rest) * 0x1p-24f;
  const float magnitude = rest < 0x0400 ? subnormal : normal;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

// Rounds to nearest, ties to even; beyond 65504 + half a unit becomes infinity.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  std::uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff); // a quiet NaN
  } else if (magnitude >= 0x47800000) {
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {
    // Below 2^-14: adding 0.5 lines the last kept bit up with the unit 2^-24, and rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000;
  } else {
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  return static_cast<std::uint16_t>(half | sign);
}

struct Half {
  std::uint8_t bytes[2];

  float value() const {
    return half_to_float(static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8));
  }
  static Half of(float value) {
    const std::uint16_t half = float_to_half(value);
    return {{static_cast<std::uint8_t>(half), static_cast<std::uint8_t>(half >> 8)}};
  }
};

inline float bfloat_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; NaNs become quiet.
inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    return static_cast<std::uint16_t>(bits >> 16 | 64);
  }
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Half of the power of two that the exponent byte of MXFP4 stands for (its values are doubled).
inline float e8m0_half(std::uint8_t exponent) {
  return std::bit_cast<float>(exponent < 2 ? 0x00200000u << exponent
                                           : static_cast<std::uint32_t>(exponent - 1) << 23);
}

struct BlockQ4_0 { // x = d * (q - 8)
  Half d;
  std::uint8_t qs[16]; // low nibbles: elements 0..15, high nibbles: 16..31; so in all five
};

struct BlockQ4_1 { // x = d * q + m
  Half d;
  Half m;
  std::uint8_t qs[16];
};

struct BlockQ5_0 { // x = d * (q - 16)
  Half d;
  std::uint8_t qh[4]; // bit j of the little-endian word: the fifth bit of element j
  std::uint8_t qs[16];
};

struct BlockQ5_1 { // x = d * q + m
  Half d;
  Half m;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};

struct BlockQ8_0 { // x = d * q
  Half d;
  std::int8_t qs[32];
};

struct BlockQ2_K {         // x = d * sc * q - dmin * mn, groups of 16
  std::uint8_t scales[16]; // low nibble: sc, high nibble: mn
  std::uint8_t qs[64];     // per 128 elements 32 bytes; bits 2k..2k+1: elements 32k..32k+31
  Half d;
  Half dmin;
};

struct BlockQ3_K {        // x = d * (sc - 32) * (q - 4 * (bit clear)), groups of 16
  std::uint8_t hmask[32]; // bit k of byte j: the third bit of element 32k + j
  std::uint8_t qs[64];
  std::uint8_t scales[12]; // 16 scales of 6 bits
  Half d;
};

struct BlockQ4_K { // x = d * sc * q - dmin * mn, groups of 32
  Half d;
  Half dmin;
  std::uint8_t scales[12]; // 8 scales and 8 mins of 6 bits
  std::uint8_t qs[128];    // per 64 elements 32 bytes: low nibbles first, then high ones
};

struct BlockQ5_K {
  Half d;
  Half dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32]; // bit g of byte j: the fifth bit of element 32g + j
  std::uint8_t qs[128];
};

struct BlockQ6_K {      // x = d * sc * (q - 32), groups of 16
  std::uint8_t ql[128]; // per 128 elements 64 bytes: low nibbles 0..63, high nibbles 64..127
  std::uint8_t qh[64];  // per 128 elements 32 bytes; bits 2k..2k+1: elements 32k..32k+31
  std::int8_t scales[16];
  Half d;
};

struct BlockIQ4_NL { // x = d * kIQ4[q]
  Half d;
  std::uint8_t qs[16];
};

struct BlockIQ4_XS { // x = d * (sc - 32) * kIQ4[q], groups of 32
  Half d;
  std::uint8_t scales_h[2]; // two high bits of each scale
  std::uint8_t scales_l[4]; // four low bits of each scale
  std::uint8_t qs[128];     // 16 bytes a group: low nibbles first
};

struct BlockMXFP4 { // x = 2^(e - 128) * kMXFP4[q]
  std::uint8_t e;
  std::uint8_t qs[16];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockMXFP4) == 17 && alignof(BlockQ6_K) == 1);

struct ScaleMin {
  std::uint8_t scale;
  std::uint8_t min;
};

// Scale and min of group g (0..7) out of the 12 packed bytes of Q4_K and Q5_K: groups 0..3 have
// six bits of bytes 0..3 (scales) and 4..7 (mins); groups 4..7 their low four in bytes 8..11 and
// their high two in the top of bytes 0..7.
inline ScaleMin unpack_scale_min(const std::uint8_t *packed, int g) {
  if (g < 4) {
    return {static_cast<std::uint8_t>(packed[g] & 63),
            static_cast<std::uint8_t>(packed[g + 4] & 63)};
  }
  return {static_cast<std::uint8_t>((packed[g + 4] & 15) | (packed[g - 4] >> 6 << 4)),
          static_cast<std::uint8_t>((packed[g + 4] >> 4) | (packed[g] >> 6 << 4))};
}

inline void pack_scale_min(std::uint8_t *packed, int g, std::uint8_t scale, std::uint8_t min) {
  if (g < 4) {
    packed[g] = static_cast<std::uint8_t>((packed[g] & 0xc0) | scale);
    packed[g + 4] = static_cast<std::uint8_t>((packed[g + 4] & 0xc0) | min);
  } else {
    packed[g + 4] = static_cast<std::uint8_t>((scale & 15) | (min & 15) << 4);
    packed[g - 4] = static_cast<std::uint8_t>((packed[g - 4] & 63) | scale >> 4 << 6);
    packed[g] = static_cast<std::uint8_t>((packed[g] & 63) | min >> 4 << 6);
  }
}

// The 16 six-bit scales of Q3_K, minus 32: four low bits in bytes 0..7 (two a byte), two high
// bits in bytes 8..11 (four a byte).
inline int unpack_q3_scale(const std::uint8_t *packed, int g) {
  const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
  const int high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
  return (low | high << 4) - 32;
}

} // namespace insula::quants
