// Float32 to the plain and the legacy formats (blocks of 32).
//
// Without importance the bytes are those of ggml's reference quantizers; with it the scale is
// searched for, see search.h.
#include "blocks.h"
#include "quants.h"
#include "scales.h"
#include "search.h"

#include <cstring>

namespace insula::quants {

namespace {

constexpr Trial kTrials{-0.9f, 0.05f, 36};

// Below this a scale's reciprocal overflows; the stored half is zero long before.
float reciprocal(float d) { return std::fabs(d) > 1e-35f ? 1.0f / d : 0.0f; }

// llama.cpp's weights where an importance is given: errors count more on large values, and on
// columns that see large activations.
void block_weights(const float *x, const float *importance, float mean_square, float *w) {
  for (int j = 0; j < kBlock; ++j) {
    w[j] = importance[j] * std::sqrt(mean_square + x[j] * x[j]);
  }
}

float mean_square(const float *x, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return n == 0 ? 0 : static_cast<float>(sum / static_cast<double>(n));
}

float largest_magnitude(const float *x) {
  float largest = 0;
  for (int j = 0; j < kBlock; ++j) {
    largest = std::fabs(x[j]) > std::fabs(largest) ? x[j] : largest;
  }
  return largest;
}

// q in 0..levels-1 as floats; x = d * (q - levels / 2).
float symmetric_levels(const float *x, const float *importance, float square, int levels,
                       float *q) {
  const auto half = static_cast<float>(levels / 2);
  float d;
  if (importance != nullptr) {
    float w[kBlock];
    block_weights(x, importance, square, w);
    d = fit_symmetric<kBlock>(x, w, levels / 2, q);
    for (int j = 0; j < kBlock; ++j) {
      q[j] += half;
    }
    return d;
  }
  d = largest_magnitude(x) / -half;
  const float inverse = reciprocal(d);
  for (int j = 0; j < kBlock; ++j) {
    const float level = x[j] * inverse + (half + 0.5f);
    q[j] = std::fmin(static_cast<float>(static_cast<int>(level)), static_cast<float>(levels - 1));
  }
  return d;
}

// q in 0..levels-1 as floats; x = d * q + m.
Affine affine_levels(const float *x, const float *importance, float square, int levels, float *q) {
  const auto top = static_cast<float>(levels - 1);
  if (importance != nullptr) {
    float w[kBlock];
    block_weights(x, importance, square, w);
    return fit_affine<kBlock>(x, w, top, kTrials, q);
  }
  float min = x[0];
  float max = x[0];
  for (int j = 1; j < kBlock; ++j) {
    min = x[j] < min ? x[j] : min;
    max = x[j] > max ? x[j] : max;
  }
  const float d = (max - min) / top;
  const float inverse = reciprocal(d);
  for (int j = 0; j < kBlock; ++j) {
    const float level = (x[j] - min) * inverse + 0.5f;
    q[j] = std::fmin(static_cast<float>(static_cast<int>(level)), top);
  }
  return {d, min};
}

void pack_nibbles(const float *q, std::uint8_t *qs) {
  for (int j = 0; j < 16; ++j) {
    const int low = static_cast<int>(q[j]) & 15;
    const int high = static_cast<int>(q[j + 16]) & 15;
    qs[j] = static_cast<std::uint8_t>(low | high << 4);
  }
}

void pack_fifth_bits(const float *q, std::uint8_t *qh) {
  std::memset(qh, 0, 4);
  for (int j = 0; j < kBlock; ++j) {
    const int bit = static_cast<int>(q[j]) >> 4 & 1;
    qh[j / 8] = static_cast<std::uint8_t>(qh[j / 8] | bit << (j % 8));
  }
}

} // namespace

bool quantize_f32(const float *src, std::uint8_t *dst, std::size_t n, const float *) {
  if (n > 0) {
    std::memcpy(dst, src, n * sizeof(float));
  }
  return true;
}

bool quantize_f16(const float *src, std::uint8_t *dst, std::size_t n, const float *) {
  bool fits = true;
  for (std::size_t i = 0; i < n; ++i) {
    const Half half = Half::of(src[i]);
    std::memcpy(dst + 2 * i, half.bytes, 2);
    fits = fits && (!infinite(half) || !std::isfinite(src[i]));
  }
  return fits;
}

bool quantize_bf16(const float *src, std::uint8_t *dst, std::size_t n, const float *) {
  bool fits = true;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint16_t bits = float_to_bfloat(src[i]);
    dst[2 * i] = static_cast<std::uint8_t>(bits);
    dst[2 * i + 1] = static_cast<std::uint8_t>(bits >> 8);
    fits = fits && ((bits & 0x7f80) != 0x7f80 || !std::isfinite(src[i]));
  }
  return fits;
}

bool quantize_q4_0(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = importance ? mean_square(src, n) : 0;
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockQ4_0)) {
    float q[kBlock];
    auto *block = reinterpret_cast<BlockQ4_0 *>(dst);
    block->d =
        Half::of(symmetric_levels(src + i, importance ? importance + i : nullptr, square, 16, q));
    fits = fits && !infinite(block->d);
    pack_nibbles(q, block->qs);
  }
  return fits;
}

bool quantize_q4_1(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = importance ? mean_square(src, n) : 0;
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockQ4_1)) {
    float q[kBlock];
    auto *block = reinterpret_cast<BlockQ4_1 *>(dst);
    const Affine fit = affine_levels(src + i, importance ? importance + i : nullptr, square, 16, q);
    block->d = Half::of(fit.scale);
    block->m = Half::of(fit.min);
    fits = fits && !infinite(block->d) && !infinite(block->m);
    pack_nibbles(q, block->qs);
  }
  return fits;
}

bool quantize_q5_0(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = importance ? mean_square(src, n) : 0;
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockQ5_0)) {
    float q[kBlock];
    auto *block = reinterpret_cast<BlockQ5_0 *>(dst);
    block->d =
        Half::of(symmetric_levels(src + i, importance ? importance + i : nullptr, square, 32, q));
    fits = fits && !infinite(block->d);
    pack_nibbles(q, block->qs);
    pack_fifth_bits(q, block->qh);
  }
  return fits;
}

bool quantize_q5_1(const float *src, std::uint8_t *dst, std::size_t n, const float *importance) {
  const float square = importance ? mean_square(src, n) : 0;
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockQ5_1)) {
    float q[kBlock];
    auto *block = reinterpret_cast<BlockQ5_1 *>(dst);
    const Affine fit = affine_levels(src + i, importance ? importance + i : nullptr, square, 32, q);
    block->d = Half::of(fit.scale);
    block->m = Half::of(fit.min);
    fits = fits && !infinite(block->d) && !infinite(block->m);
    pack_nibbles(q, block->qs);
    pack_fifth_bits(q, block->qh);
  }
  return fits;
}

// 8 bits are enough for a plain scale: importance is not used, as in llama.cpp.
bool quantize_q8_0(const float *src, std::uint8_t *dst, std::size_t n, const float *) {
  bool fits = true;
  for (std::size_t i = 0; i < n; i += kBlock, dst += sizeof(BlockQ8_0)) {
    auto *block = reinterpret_cast<BlockQ8_0 *>(dst);
    const float d = std::fabs(largest_magnitude(src + i)) / 127.0f;
    const float inverse = reciprocal(d);
    block->d = Half::of(d);
    fits = fits && !infinite(block->d);
    for (int j = 0; j < kBlock; ++j) {
      const float level = src[i + static_cast<std::size_t>(j)] * inverse;
      int q = static_cast<int>(level);
      const float rest = level - static_cast<float>(q);
      q += (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0); // to nearest, ties away from zero
      block->qs[j] = static_cast<std::int8_t>(q);
    }
  }
  return fits;
}

} // namespace insula::quants
