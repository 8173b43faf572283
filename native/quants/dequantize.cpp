// Blocks to float32, one loop a format, in the order of operations that the reference has.
#include "blocks.h"
#include "quants.h"

#include <cstring>

namespace insula::quants {

namespace {

template <typename Block> const Block *blocks(const std::uint8_t *src) {
  return reinterpret_cast<const Block *>(src); // alignment 1: see blocks.h
}

std::uint16_t load_u16(const std::uint8_t *at) {
  return static_cast<std::uint16_t>(at[0] | at[1] << 8);
}

std::uint32_t load_u32(const std::uint8_t *at) {
  return static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 |
         static_cast<std::uint32_t>(at[2]) << 16 | static_cast<std::uint32_t>(at[3]) << 24;
}

} // namespace

void dequantize_f32(const std::uint8_t *src, float *dst, std::size_t n) {
  if (n > 0) {
    std::memcpy(dst, src, n * sizeof(float)); // little-endian hosts only, as everywhere here
  }
}

void dequantize_f16(const std::uint8_t *src, float *dst, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    dst[i] = half_to_float(load_u16(src + 2 * i));
  }
}

void dequantize_bf16(const std::uint8_t *src, float *dst, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    dst[i] = bfloat_to_float(load_u16(src + 2 * i));
  }
}

void dequantize_q4_0(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ4_0>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>((block->qs[j] & 15) - 8);
      dst[j + 16] = d * static_cast<float>((block->qs[j] >> 4) - 8);
    }
  }
}

void dequantize_q4_1(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ4_1>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    const float m = block->m.value();
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>(block->qs[j] & 15) + m;
      dst[j + 16] = d * static_cast<float>(block->qs[j] >> 4) + m;
    }
  }
}

void dequantize_q5_0(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ5_0>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    const std::uint32_t high = load_u32(block->qh);
    for (int j = 0; j < 16; ++j) {
      const int low_half = (block->qs[j] & 15) | static_cast<int>(high >> j & 1) << 4;
      const int high_half = block->qs[j] >> 4 | static_cast<int>(high >> (j + 16) & 1) << 4;
      dst[j] = d * static_cast<float>(low_half - 16);
      dst[j + 16] = d * static_cast<float>(high_half - 16);
    }
  }
}

void dequantize_q5_1(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ5_1>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    const float m = block->m.value();
    const std::uint32_t high = load_u32(block->qh);
    for (int j = 0; j < 16; ++j) {
      const int low_half = (block->qs[j] & 15) | static_cast<int>(high >> j & 1) << 4;
      const int high_half = block->qs[j] >> 4 | static_cast<int>(high >> (j + 16) & 1) << 4;
      dst[j] = d * static_cast<float>(low_half) + m;
      dst[j + 16] = d * static_cast<float>(high_half) + m;
    }
  }
}

void dequantize_q8_0(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ8_0>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    for (int j = 0; j < kBlock; ++j) {
      dst[j] = d * static_cast<float>(block->qs[j]);
    }
  }
}

void dequantize_q2_k(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ2_K>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    const float dmin = block->dmin.value();
    for (int group = 0; group < 16; ++group, dst += 16) {
      const float scale = d * static_cast<float>(block->scales[group] & 15);
      const float min = dmin * static_cast<float>(block->scales[group] >> 4);
      const std::uint8_t *qs = block->qs + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int j = 0; j < 16; ++j) {
        dst[j] = scale * static_cast<float>(qs[j] >> shift & 3) - min;
      }
    }
  }
}

void dequantize_q3_k(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ3_K>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    for (int group = 0; group < 16; ++group, dst += 16) {
      const float scale = d * static_cast<float>(unpack_q3_scale(block->scales, group));
      const std::uint8_t *qs = block->qs + group / 8 * 32 + group % 2 * 16;
      const std::uint8_t *mask = block->hmask + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int j = 0; j < 16; ++j) {
        const int q = (qs[j] >> shift & 3) - ((mask[j] >> (group / 2) & 1) != 0 ? 0 : 4);
        dst[j] = scale * static_cast<float>(q);
      }
    }
  }
}

void dequantize_q4_k(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ4_K>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    const float dmin = block->dmin.value();
    for (int group = 0; group < 8; ++group, dst += 32) {
      const ScaleMin packed = unpack_scale_min(block->scales, group);
      const float scale = d * static_cast<float>(packed.scale);
      const float min = dmin * static_cast<float>(packed.min);
      const std::uint8_t *qs = block->qs + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int j = 0; j < 32; ++j) {
        dst[j] = scale * static_cast<float>(qs[j] >> shift & 15) - min;
      }
    }
  }
}

void dequantize_q5_k(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ5_K>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    const float dmin = block->dmin.value();
    for (int group = 0; group < 8; ++group, dst += 32) {
      const ScaleMin packed = unpack_scale_min(block->scales, group);
      const float scale = d * static_cast<float>(packed.scale);
      const float min = dmin * static_cast<float>(packed.min);
      const std::uint8_t *qs = block->qs + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int j = 0; j < 32; ++j) {
        const int q = (qs[j] >> shift & 15) | (block->qh[j] >> group & 1) << 4;
        dst[j] = scale * static_cast<float>(q) - min;
      }
    }
  }
}

void dequantize_q6_k(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockQ6_K>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    for (int group = 0; group < 16; ++group, dst += 16) {
      const float scale = d * static_cast<float>(block->scales[group]);
      const int half = group / 8;
      const int within = group % 8 * 16; // of the 128 elements of this half
      const std::uint8_t *ql = block->ql + half * 64 + within % 64;
      const std::uint8_t *qh = block->qh + half * 32 + within % 32;
      const int low_shift = within / 64 * 4;
      const int high_shift = within / 32 * 2;
      for (int j = 0; j < 16; ++j) {
        const int q = (ql[j] >> low_shift & 15) | (qh[j] >> high_shift & 3) << 4;
        dst[j] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

void dequantize_iq4_nl(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockIQ4_NL>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = block->d.value();
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>(kIQ4[block->qs[j] & 15]);
      dst[j + 16] = d * static_cast<float>(kIQ4[block->qs[j] >> 4]);
    }
  }
}

void dequantize_iq4_xs(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockIQ4_XS>(src);
  for (std::size_t i = 0; i < n / kSuper; ++i, ++block) {
    const float d = block->d.value();
    const int high = load_u16(block->scales_h);
    for (int group = 0; group < 8; ++group, dst += 32) {
      const int low = block->scales_l[group / 2] >> (group % 2 * 4) & 15;
      const float scale = d * static_cast<float>((low | (high >> (2 * group) & 3) << 4) - 32);
      const std::uint8_t *qs = block->qs + group * 16;
      for (int j = 0; j < 16; ++j) {
        dst[j] = scale * static_cast<float>(kIQ4[qs[j] & 15]);
        dst[j + 16] = scale * static_cast<float>(kIQ4[qs[j] >> 4]);
      }
    }
  }
}

void dequantize_mxfp4(const std::uint8_t *src, float *dst, std::size_t n) {
  const auto *block = blocks<BlockMXFP4>(src);
  for (std::size_t i = 0; i < n / kBlock; ++i, ++block, dst += kBlock) {
    const float d = e8m0_half(block->e);
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>(kMXFP4[block->qs[j] & 15]);
      dst[j + 16] = d * static_cast<float>(kMXFP4[block->qs[j] >> 4]);
    }
  }
}

} // namespace insula::quants
