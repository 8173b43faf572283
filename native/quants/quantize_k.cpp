// Float32 to Q2_K, Q4_K and Q5_K: super-blocks of 256 whose groups have a scale and a minimum,
// which are quantized too.
#include "quants.h"
#include "scales.h"

#include <cstring>

namespace insula::quants {

namespace {

// A super-block of groups of N before packing: x = d * scale * q - dmin * min.
template <int N> struct SuperBlock {
  Half d;
  Half dmin;
  std::uint8_t scales[kSuper / N];
  std::uint8_t mins[kSuper / N];
  float q[kSuper];
};

// The largest level and the largest code of a scale or minimum.
struct Range {
  float levels;
  int codes;
};

// The codes of n non-negative values, and the unit they count in.
Half quantize_scales(const float *values, int n, int largest_code, std::uint8_t *codes) {
  const auto top = static_cast<float>(largest_code);
  float max = 0;
  for (int g = 0; g < n; ++g) {
    max = values[g] > max ? values[g] : max;
  }
  const Half half = unit(max / top);
  const float inverse = half.value() > 0 ? 1.0f / half.value() : 0.0f;
  for (int g = 0; g < n; ++g) {
    codes[g] = static_cast<std::uint8_t>(round_within(inverse * values[g], 0, top));
  }
  return half;
}

// The levels of a group for its final, quantized scale and minimum; returns the weighted error.
template <int N>
float assign_levels(const float *x, const float *w, float scale, float min, float top, float *q) {
  if (!(scale > 0)) {
    std::memset(q, 0, N * sizeof(float));
  } else {
    for (int j = 0; j < N; ++j) {
      q[j] = round_within((x[j] + min) / scale, 0, top);
    }
  }
  float lanes[kLanes] = {};
  for (int j = 0; j < N; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float e = scale * q[j + k] - min - x[j + k];
      lanes[k] += w[j + k] * (e * e);
    }
  }
  return sum_lanes(lanes);
}

// Fits groups first, then rounds their scales and minima to codes, then looks at the neighbours
// of each pair of codes: rounding one may be repaired by the other.
template <int N>
SuperBlock<N> fit_super_block(const float *x, const float *importance, Range range, Trial trial) {
  constexpr int kGroups = kSuper / N;
  const float top = range.levels;
  SuperBlock<N> block = {};
  float w[kSuper];
  float scales[kGroups];
  float mins[kGroups];
  float super_square = 0;
  if (importance != nullptr) {
    super_square = 2 * dot<kSuper>(x, x) / kSuper;
  }
  for (int g = 0; g < kGroups; ++g) {
    const int at = N * g;
    group_weights<N>(x + at, importance ? importance + at : nullptr, super_square, w + at);
    const Affine fit = fit_affine<N>(x + at, w + at, top, trial, block.q + at);
    scales[g] = fit.scale;
    mins[g] = -fit.min;
  }
  block.d = quantize_scales(scales, kGroups, range.codes, block.scales);
  block.dmin = quantize_scales(mins, kGroups, range.codes, block.mins);
  const float d = block.d.value();
  const float dmin = block.dmin.value();
  for (int g = 0; g < kGroups; ++g) {
    const int at = N * g;
    const int scale0 = block.scales[g];
    const int min0 = block.mins[g];
    float best_error = assign_levels<N>(x + at, w + at, d * static_cast<float>(scale0),
                                        dmin * static_cast<float>(min0), top, block.q + at);
    float trial_q[N];
    for (int scale = scale0 - 1; scale <= scale0 + 1; ++scale) {
      for (int min = min0 - 1; min <= min0 + 1; ++min) {
        if (scale < 0 || scale > range.codes || min < 0 || min > range.codes ||
            (scale == scale0 && min == min0)) {
          continue;
        }
        const float error = assign_levels<N>(x + at, w + at, d * static_cast<float>(scale),
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
  for (int pair = 0; pair < 4; ++pair, q += 64, qs += 32) {
    for (int j = 0; j < 32; ++j) {
      const int low = static_cast<int>(q[j]) & 15;
      const int high = static_cast<int>(q[j + 32]) & 15;
      qs[j] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
}

} // namespace

bool quantize_q2_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const Trial trial = importance ? Trial{-0.9f, 0.05f, 36} : Trial{-0.5f, 0.1f, 15};
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ2_K)) {
    const auto fit =
        fit_super_block<16>(src + i, importance ? importance + i : nullptr, {3, 15}, trial);
    auto *block = reinterpret_cast<BlockQ2_K *>(dst);
    block->d = fit.d;
    block->dmin = fit.dmin;
    fits = fits && !infinite(fit.d) && !infinite(fit.dmin);
    for (int g = 0; g < 16; ++g) {
      block->scales[g] = static_cast<std::uint8_t>(fit.scales[g] | fit.mins[g] << 4);
    }
    pack_crumbs(fit.q, block->qs);
  }
  return fits;
}

bool quantize_q4_k(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const Trial trial = importance ? Trial{-0.9f, 0.05f, 36} : Trial{-1.0f, 0.1f, 20};
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockQ4_K)) {
    const auto fit =
        fit_super_block<32>(src + i, importance ? importance + i : nullptr, {15, 63}, trial);
    auto *block = reinterpret_cast<BlockQ4_K *>(dst);
    block->d = fit.d;
    block->dmin = fit.dmin;
    fits = fits && !infinite(fit.d) && !infinite(fit.dmin);
    std::memset(block->scales, 0, sizeof(block->scales));
    for (int g = 0; g < 8; ++g) {
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
    const auto fit =
        fit_super_block<32>(src + i, importance ? importance + i : nullptr, {31, 63}, trial);
    auto *block = reinterpret_cast<BlockQ5_K *>(dst);
    block->d = fit.d;
    block->dmin = fit.dmin;
    fits = fits && !infinite(fit.d) && !infinite(fit.dmin);
    std::memset(block->scales, 0, sizeof(block->scales));
    std::memset(block->qh, 0, sizeof(block->qh));
    for (int g = 0; g < 8; ++g) {
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

} // namespace insula::quants
