// What the quantizers of super-blocks share: the scales' storage, and how much an error counts.
#pragma once

#include "blocks.h"
#include "search.h"

namespace insula::quants {

inline bool infinite(Half half) { return (half.bytes[1] & 0x7c) == 0x7c; }

// The unit that the codes of several scales count in: value as a half, but never so much smaller
// than it that the largest code would not fit. Below 2^-14 halves are coarse, and that matters.
inline Half unit(float value) {
  Half half = Half::of(value);
  const auto bits = static_cast<std::uint16_t>(half.bytes[0] | half.bytes[1] << 8);
  if ((bits & 0x7c00) == 0 && std::fabs(half.value()) < std::fabs(value)) {
    const auto up = static_cast<std::uint16_t>(bits + 1); // away from zero
    half = {{static_cast<std::uint8_t>(up), static_cast<std::uint8_t>(up >> 8)}};
  }
  return half;
}

// Two bits of 256 levels: per 128 elements 32 bytes, bits 2k..2k+1 of which are elements
// 32k..32k+31.
inline void pack_crumbs(const float *q, std::uint8_t *qs) {
  for (int j = 0; j < 64; ++j) {
    int bits = 0;
    for (int k = 0; k < 4; ++k) {
      bits |= (static_cast<int>(q[j / 32 * 128 + 32 * k + j % 32]) & 3) << (2 * k);
    }
    qs[j] = static_cast<std::uint8_t>(bits);
  }
}

// How much the error of each of N elements counts. Without importance, llama.cpp's choice: the mean
// magnitude of the group plus the element's own. super_square: twice the mean square of the
// super-block, used with importance.
template <int N>
inline void group_weights(const float *x, const float *importance, float super_square, float *w) {
  if (importance != nullptr) {
    for (int j = 0; j < N; ++j) {
      w[j] = importance[j] * std::sqrt(super_square + x[j] * x[j]);
    }
    return;
  }
  const float mean = std::sqrt(dot<N>(x, x) / N);
  for (int j = 0; j < N; ++j) {
    w[j] = mean + std::fabs(x[j]);
  }
}

} // namespace insula::quants
