// Float32 to the four-bit formats with a codebook: IQ4_NL, IQ4_XS and MXFP4.
//
// The trial scales are those of llama.cpp (ggml-quants.c, MIT) and as many again around the
// codebook's other end; MXFP4's exponents are tried against their neighbours.
#include "quants.h"
#include "scales.h"

#include <cstring>

namespace insula::quants {

namespace {

// Halfway between neighbours: a value belongs to the upper one from there on.
struct Steps {
  float middle[15];
  float gap[15];
};
template <int N> constexpr Steps steps_of(const std::int8_t (&values)[N], int n) {
  Steps s{};
  for (int i = 0; i + 1 < n; ++i) {
    s.middle[i] = (static_cast<float>(values[i]) + static_cast<float>(values[i + 1])) / 2;
    s.gap[i] = static_cast<float>(values[i + 1] - values[i]);
  }
  return s;
}
constexpr Steps kIQ4Steps = steps_of(kIQ4, 16);
constexpr Steps kMXFP4Steps = steps_of(kMXFP4, 8); // magnitudes

float nearest_iq4(float value) {
  float nearest = kIQ4[0];
  for (int i = 0; i < 15; ++i) {
    nearest += value >= kIQ4Steps.middle[i] ? kIQ4Steps.gap[i] : 0.0f;
  }
  return nearest;
}

float nearest_mxfp4(float value) {
  const float magnitude = std::fabs(value);
  float nearest = 0;
  for (int i = 0; i < 7; ++i) {
    nearest += magnitude >= kMXFP4Steps.middle[i] ? kMXFP4Steps.gap[i] : 0.0f;
  }
  return value < 0 ? -nearest : nearest;
}

// The code of a value that is in the codebook.
int code_of(const std::int8_t (&values)[16], float value) {
  int code = 0;
  while (static_cast<float>(values[code]) != value) {
    ++code;
  }
  return code;
}

void pack_codes(const std::int8_t (&values)[16], const float *q, std::uint8_t *qs) {
  for (int j = 0; j < 16; ++j) {
    qs[j] = static_cast<std::uint8_t>(code_of(values, q[j]) | code_of(values, q[j + 16]) << 4);
  }
}

float error_of(const float *x, const float *w, float scale, const float *q) {
  float lanes[kLanes] = {};
  for (int j = 0; j < kBlock; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float e = scale * q[j + k] - x[j + k];
      lanes[k] += w[j + k] * (e * e);
    }
  }
  return sum_lanes(lanes);
}

// The values of a group for its final scale; returns the weighted error.
float assign_iq4(const float *x, const float *w, float scale, float *q) {
  const float inverse = std::fabs(scale) > 1e-35f ? 1.0f / scale : 0.0f;
  for (int j = 0; j < kBlock; ++j) {
    q[j] = nearest_iq4(inverse * x[j]);
  }
  return error_of(x, w, scale, q);
}

// The scale of a group that loses least among trials which put its largest element near either end
// of the codebook, and one more from the best of them.
float fit_iq4(const float *x, const float *w) {
  float largest = 0;
  for (int j = 0; j < kBlock; ++j) {
    largest = std::fabs(x[j]) > std::fabs(largest) ? x[j] : largest;
  }
  if (!(std::fabs(largest) > kTiny)) {
    return 0;
  }
  float best_scale = 0;
  float best_gain = 0; // how much of sum w x^2 the fit explains: sumlx^2 / suml2
  const auto look_at = [&](float inverse) {
    float lanes_l2[kLanes] = {};
    float lanes_xl[kLanes] = {};
    for (int j = 0; j < kBlock; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const float l = nearest_iq4(inverse * x[j + k]);
        lanes_l2[k] += w[j + k] * l * l;
        lanes_xl[k] += w[j + k] * l * x[j + k];
      }
    }
    const float sum_l2 = sum_lanes(lanes_l2);
    const float sum_xl = sum_lanes(lanes_xl);
    if (sum_l2 > 0 && sum_xl * sum_xl > best_gain * kBetter * sum_l2) {
      best_scale = sum_xl / sum_l2;
      best_gain = best_scale * sum_xl;
    }
  };
  look_at(-127.0f / largest); // the plain scale first, so that a tie keeps it
  for (const float end : {-127.0f, 113.0f}) {
    for (int t = -7; t <= 7; ++t) {
      look_at((end + static_cast<float>(t)) / largest);
    }
  }
  if (std::fabs(best_scale) > kTiny) {
    look_at(1.0f / best_scale);
  }
  return best_scale;
}

float super_square(const float *x, const float *importance, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; importance != nullptr && i < n; ++i) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return n == 0 ? 0 : static_cast<float>(2 * sum / static_cast<double>(n));
}

} // namespace

bool quantize_iq4_nl(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = super_square(src, importance, n);
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockIQ4_NL)) {
    auto *block = reinterpret_cast<BlockIQ4_NL *>(dst);
    float w[kBlock];
    float q[kBlock];
    group_weights<kBlock>(src + i, importance ? importance + i : nullptr, square, w);
    block->d = unit(fit_iq4(src + i, w));
    fits = fits && !infinite(block->d);
    assign_iq4(src + i, w, block->d.value(), q);
    pack_codes(kIQ4, q, block->qs);
  }
  return fits;
}

bool quantize_iq4_xs(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kSuper, dst += sizeof(BlockIQ4_XS)) {
    const float *x = src + i;
    auto *block = reinterpret_cast<BlockIQ4_XS *>(dst);
    std::memset(block, 0, sizeof(*block));
    const float square = super_square(x, importance, kSuper);
    float w[kSuper];
    float scales[8];
    float largest = 0;
    for (int g = 0; g < 8; ++g) {
      const int at = 32 * g;
      group_weights<32>(x + at, importance ? importance + i + at : nullptr, square, w + at);
      scales[g] = fit_iq4(x + at, w + at);
      largest = std::fabs(scales[g]) > std::fabs(largest) ? scales[g] : largest;
    }
    block->d = unit(largest / -32.0f);
    fits = fits && !infinite(block->d);
    const float d = block->d.value();
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    int high = 0;
    for (int g = 0; g < 8; ++g) {
      const int at = 32 * g;
      const int code0 = static_cast<int>(round_within(inverse * scales[g], -32, 31));
      int best = code0;
      float q[kBlock];
      float best_error = assign_iq4(x + at, w + at, d * static_cast<float>(code0), q);
      float trial_q[kBlock];
      for (int code = code0 - 1; code <= code0 + 1; code += 2) {
        if (code < -32 || code > 31) {
          continue;
        }
        const float error = assign_iq4(x + at, w + at, d * static_cast<float>(code), trial_q);
        if (error < best_error) {
          best_error = error;
          best = code;
          std::memcpy(q, trial_q, sizeof(q));
        }
      }
      const int bits = best + 32;
      const int low = block->scales_l[g / 2] | (bits & 15) << (g % 2 * 4);
      block->scales_l[g / 2] = static_cast<std::uint8_t>(low);
      high |= bits >> 4 << (2 * g);
      pack_codes(kIQ4, q, block->qs + 16 * g);
    }
    block->scales_h[0] = static_cast<std::uint8_t>(high);
    block->scales_h[1] = static_cast<std::uint8_t>(high >> 8);
  }
  return fits;
}

bool quantize_mxfp4(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = super_square(src, importance, n);
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockMXFP4)) {
    const float *x = src + i;
    auto *block = reinterpret_cast<BlockMXFP4 *>(dst);
    float w[kBlock];
    float largest = 0;
    for (int j = 0; j < kBlock; ++j) {
      largest = std::fabs(x[j]) > largest ? std::fabs(x[j]) : largest;
      w[j] = importance
                 ? importance[i + static_cast<std::size_t>(j)] * std::sqrt(square + x[j] * x[j])
                 : 1.0f;
    }
    // ggml's exponent: the one that keeps the largest element's own power of two.
    const int plain = largest > 0 ? std::ilogb(largest) - 2 + 127 : 0;
    float q[kBlock] = {};
    float best_error = -1;
    block->e = 0;
    for (const int e : {plain, plain - 1, plain + 1}) {
      if (e < 0 || e > 254) {
        continue;
      }
      const float scale = e8m0_half(static_cast<std::uint8_t>(e));
      const float inverse = std::ldexp(1.0f, 128 - e); // infinite below 2^-127: there all are zeros
      float trial_q[kBlock];
      for (int j = 0; j < kBlock; ++j) {
        trial_q[j] = e > 1 ? nearest_mxfp4(inverse * x[j]) : 0.0f;
      }
      const float error = error_of(x, w, scale, trial_q);
      if (best_error < 0 || error < best_error) {
        best_error = error;
        block->e = static_cast<std::uint8_t>(e);
        std::memcpy(q, trial_q, sizeof(q));
      }
    }
    for (int j = 0; j < kBlock; ++j) {
      q[j] = q[j] == 0 ? 0.0f : q[j]; // not the negative zero's code
    }
    pack_codes(kMXFP4, q, block->qs);
  }
  return true;
}

} // namespace insula::quants
