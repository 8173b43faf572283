// Float32 to Q3_K and Q6_K: super-blocks of 256 in groups of 16 with a signed scale, quantized too.
#include "quants.h"
#include "scales.h"

#include <cstring>

namespace insula::quants {

namespace {

// The levels of a group for its final scale, in -levels..levels-1; returns the weighted error.
float assign_levels(const float *x, const float *w, float scale, float levels, float *q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = scale != 0 ? round_within(x[j] / scale, -levels, levels - 1) : 0.0f;
  }
  float lanes[kLanes] = {};
  for (int j = 0; j < 16; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float e = scale * q[j + k] - x[j + k];
      lanes[k] += w[j + k] * (e * e);
    }
  }
  return sum_lanes(lanes);
}

// The low six bits of code + 32 of group g; see unpack_q3_scale.
void pack_q3_scale(std::uint8_t *packed, int g, int code) {
  const int bits = code + 32;
  const int low = packed[g % 8] | (bits & 15) << (g / 8 * 4);
  const int high = packed[8 + g % 4] | bits >> 4 << (g / 4 * 2);
  packed[g % 8] = static_cast<std::uint8_t>(low);
  packed[8 + g % 4] = static_cast<std::uint8_t>(high);
}

} // namespace

// Fits groups first, then rounds their scales to codes, then looks at the neighbours of each code
// with the levels that it leads to.
bool quantize_q3_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ3_K)) {
    const float *x = src + i;
    auto *block = reinterpret_cast<BlockQ3_K *>(dst);
    std::memset(block, 0, sizeof(*block));
    const float super_square = importance ? 2 * dot<kSuper>(x, x) / kSuper : 0;
    float w[kSuper];
    float q[kSuper];
    float scales[16];
    float largest = 0;
    for (int g = 0; g < 16; ++g) {
      const int at = 16 * g;
      group_weights<16>(x + at, importance ? importance + i + at : nullptr, super_square, w + at);
      scales[g] = fit_symmetric<16>(x + at, w + at, 4, q + at, kBetter);
      largest = std::fabs(scales[g]) > std::fabs(largest) ? scales[g] : largest;
    }
    block->d = unit(largest / -32.0f);
    fits = fits && !infinite(block->d);
    const float d = block->d.value();
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int g = 0; g < 16; ++g) {
      const int at = 16 * g;
      const int code0 = static_cast<int>(round_within(inverse * scales[g], -32, 31));
      int best = code0;
      float best_error = assign_levels(x + at, w + at, d * static_cast<float>(code0), 4, q + at);
      float trial_q[16];
      for (int code = code0 - 3; code <= code0 + 3; ++code) {
        if (code < -32 || code > 31 || code == code0) {
          continue;
        }
        const float error = assign_levels(x + at, w + at, d * static_cast<float>(code), 4, trial_q);
        if (error < best_error) {
          best_error = error;
          best = code;
          std::memcpy(q + at, trial_q, sizeof(trial_q));
        }
      }
      pack_q3_scale(block->scales, g, best);
    }
    for (int j = 0; j < kSuper; ++j) {
      q[j] += 4;
      const int third = static_cast<int>(q[j]) >> 2;
      block->hmask[j % 32] = static_cast<std::uint8_t>(block->hmask[j % 32] | third << (j / 32));
    }
    pack_crumbs(q, block->qs);
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
