// Float32 to Q4_K, Q5_K and Q6_K: super-blocks of 256 whose group scales are quantized too.
#include "blocks.h"
#include "quants.h"
#include "search.h"

#include <cstring>

namespace insula::quants {

namespace {

constexpr int kGroups = 8; // of 32, in Q4_K and Q5_K

// A super-block of Q4_K or Q5_K before packing: x = d * scale * q - dmin * min.
struct SuperBlock {
  Half d;
  Half dmin;
  std::uint8_t scales[kGroups];
  std::uint8_t mins[kGroups];
  float q[kSuper];
};

bool infinite(Half half) { return (half.bytes[1] & 0x7c) == 0x7c; }

// How much each element's error counts. Without importance, llama.cpp's choice: the mean magnitude
// of the group plus the element's own.
void group_weights(const float *x, const float *importance, float super_square, float *w) {
  if (importance != nullptr) {
    for (int j = 0; j < 32; ++j) {
      w[j] = importance[j] * std::sqrt(super_square + x[j] * x[j]);
    }
    return;
  }
  const float mean = std::sqrt(dot<32>(x, x) / 32);
  for (int j = 0; j < 32; ++j) {
    w[j] = mean + std::fabs(x[j]);
  }
}

// The unit that the codes of several scales count in: value as a half, but never so much smaller
// than it that the largest code would not fit. Below 2^-14 halves are coarse, and that matters.
Half unit(float value) {
  Half half = Half::of(value);
  const auto bits = static_cast<std::uint16_t>(half.bytes[0] | half.bytes[1] << 8);
  if ((bits & 0x7c00) == 0 && std::fabs(half.value()) < std::fabs(value)) {
    const auto up = static_cast<std::uint16_t>(bits + 1); // away from zero
    half = {{static_cast<std::uint8_t>(up), static_cast<std::uint8_t>(up >> 8)}};
  }
  return half;
}

// The 6-bit code of each of 8 non-negative values, and the unit they count in.
Half quantize_scales(const float *values, std::uint8_t *codes) {
  float max = 0;
  for (int g = 0; g < kGroups; ++g) {
    max = values[g] > max ? values[g] : max;
  }
  const Half half = unit(max / 63.0f);
  const float inverse = half.value() > 0 ? 1.0f / half.value() : 0.0f;
  for (int g = 0; g < kGroups; ++g) {
    codes[g] = static_cast<std::uint8_t>(round_within(inverse * values[g], 0, 63));
  }
  return half;
}

// The levels of a group for its final, quantized scale and minimum; returns the weighted error.
float assign_levels(const float *x, const float *w, float scale, float min, float top, float *q) {
  if (!(scale > 0)) {
    std::memset(q, 0, 32 * sizeof(float));
  } else {
    for (int j = 0; j < 32; ++j) {
      q[j] = round_within((x[j] + min) / scale, 0, top);
    }
  }
  float lanes[kLanes] = {};
  for (int j = 0; j < 32; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float e = scale * q[j + k] - min - x[j + k];
      lanes[k] += w[j + k] * (e * e);
    }
  }
  return sum_lanes(lanes);
}

// Fits groups first, then rounds their scales and minima to 6 bits, then looks at the neighbours
// of each pair of codes: rounding one may be repaired by the other.
SuperBlock fit_super_block(const float *x, const float *importance, float top, Trial trial) {
  SuperBlock block = {};
  float w[kSuper];
  float scales[kGroups];
  float mins[kGroups];
  float super_square = 0;
  if (importance != nullptr) {
    super_square = 2 * dot<kSuper>(x, x) / kSuper;
  }
  for (int g = 0; g < kGroups; ++g) {
    const int at = 32 * g;
    group_weights(x + at, importance ? importance + at : nullptr, super_square, w + at);
    const Affine fit = fit_affine<32>(x + at, w + at, top, trial, block.q + at);
    scales[g] = fit.scale;
    mins[g] = -fit.min;
  }
  block.d = quantize_scales(scales, block.scales);
  block.dmin = quantize_scales(mins, block.mins);
  const float d = block.d.value();
  const float dmin = block.dmin.value();
  for (int g = 0; g < kGroups; ++g) {
    const int at = 32 * g;
    const int scale0 = block.scales[g];
    const int min0 = block.mins[g];
    float best_error = assign_levels(x + at, w + at, d * static_cast<float>(scale0),
                                     dmin * static_cast<float>(min0), top, block.q + at);
    float trial_q[32];
    for (int scale = scale0 - 1; scale <= scale0 + 1; ++scale) {
      for (int min = min0 - 1; min <= min0 + 1; ++min) {
        if (scale < 0 || scale > 63 || min < 0 || min > 63 || (scale == scale0 && min == min0)) {
          continue;
        }
        const float error = assign_levels(x + at, w + at, d * static_cast<float>(scale),
                                          dmin * static_cast<float>(min), top, trial_q);
        if (error < best_error) {
          best_error = error;
          block.scales[g] = static_cast<std::uint8_t>(scale);
          block.mins[g] = static_cast<std::uint8_t>(min);
          std::memcpy(block.q + at, trial_q, sizeof(trial_q));
        }
      }
    }
  }
  return block;
}

void pack_low_nibbles(const float *q, std::uint8_t *qs) {
  for (int pair = 0; pair < kGroups / 2; ++pair, q += 64, qs += 32) {
    for (int j = 0; j < 32; ++j) {
      const int low = static_cast<int>(q[j]) & 15;
      const int high = static_cast<int>(q[j + 32]) & 15;
      qs[j] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
}

} // namespace

bool quantize_q4_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const Trial trial = importance ? Trial{-0.9f, 0.05f, 36} : Trial{-1.0f, 0.1f, 20};
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ4_K)) {
    const SuperBlock fit =
        fit_super_block(src + i, importance ? importance + i : nullptr, 15, trial);
    auto *block = reinterpret_cast<BlockQ4_K *>(dst);
    block->d = fit.d;
    block->dmin = fit.dmin;
    fits = fits && !infinite(fit.d) && !infinite(fit.dmin);
    std::memset(block->scales, 0, sizeof(block->scales));
    for (int g = 0; g < kGroups; ++g) {
      pack_scale_min(block->scales, g, fit.scales[g], fit.mins[g]);
    }
    pack_low_nibbles(fit.q, block->qs);
  }
  return fits;
}

bool quantize_q5_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const Trial trial = importance ? Trial{-0.9f, 0.05f, 36} : Trial{-0.5f, 0.1f, 15};
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ5_K)) {
    const SuperBlock fit =
        fit_super_block(src + i, importance ? importance + i : nullptr, 31, trial);
    auto *block = reinterpret_cast<BlockQ5_K *>(dst);
    block->d = fit.d;
    block->dmin = fit.dmin;
    fits = fits && !infinite(fit.d) && !infinite(fit.dmin);
    std::memset(block->scales, 0, sizeof(block->scales));
    std::memset(block->qh, 0, sizeof(block->qh));
    for (int g = 0; g < kGroups; ++g) {
      pack_scale_min(block->scales, g, fit.scales[g], fit.mins[g]);
      for (int j = 0; j < 32; ++j) {
        const int bit = static_cast<int>(fit.q[32 * g + j]) >> 4 & 1;
        block->qh[j] = static_cast<std::uint8_t>(block->qh[j] | bit << g);
      }
    }
    pack_low_nibbles(fit.q, block->qs);
  }
  return fits;
}

bool quantize_q6_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ6_K)) {
    const float *x = src + i;
    auto *block = reinterpret_cast<BlockQ6_K *>(dst);
    std::memset(block, 0, sizeof(*block));
    float q[kSuper];
    float scales[16];
    float largest = 0;
    for (int g = 0; g < 16; ++g) {
      float w[16];
      for (int j = 0; j < 16; ++j) {
        const float value = x[16 * g + j];
        w[j] = importance ? importance[i + static_cast<std::size_t>(16 * g + j)] : value * value;
      }
      scales[g] = fit_symmetric<16>(x + 16 * g, w, 32, q + 16 * g);
      largest = std::fabs(scales[g]) > std::fabs(largest) ? scales[g] : largest;
    }
    if (!(std::fabs(largest) > kTiny)) {
      continue; // all zeros
    }
    block->d = unit(largest / -128.0f);
    fits = fits && !infinite(block->d);
    const float d = block->d.value();
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int g = 0; g < 16; ++g) {
      const float code = round_within(inverse * scales[g], -128, 127);
      block->scales[g] = static_cast<std::int8_t>(code);
      const float scale = d * code;
      for (int j = 16 * g; j < 16 * g + 16; ++j) {
        q[j] = scale != 0 ? round_within(x[j] / scale, -32, 31) : 0.0f;
      }
    }
    for (int half = 0; half < 2; ++half) {
      const float *levels = q + 128 * half;
      for (int j = 0; j < 32; ++j) {
        int code[4];
        for (int k = 0; k < 4; ++k) {
          code[k] = static_cast<int>(levels[32 * k + j]) + 32;
        }
        block->ql[64 * half + j] = static_cast<std::uint8_t>((code[0] & 15) | (code[2] & 15) << 4);
        block->ql[64 * half + j + 32] =
            static_cast<std::uint8_t>((code[1] & 15) | (code[3] & 15) << 4);
        block->qh[32 * half + j] = static_cast<std::uint8_t>(code[0] >> 4 | code[1] >> 4 << 2 |
                                                             code[2] >> 4 << 4 | code[3] >> 4 << 6);
      }
    }
  }
  return fits;
}

} // namespace insula::quants
