// The table of formats, and rows shared out among threads.
#include "quants.h"

#include "blocks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

namespace insula::quants {

namespace {

constexpr Traits kTable[] = {
    {Type::F32, "F32", 1, 4, dequantize_f32, quantize_f32},
    {Type::F16, "F16", 1, 2, dequantize_f16, quantize_f16},
    {Type::BF16, "BF16", 1, 2, dequantize_bf16, quantize_bf16},
    {Type::Q4_0, "Q4_0", kBlock, sizeof(BlockQ4_0), dequantize_q4_0, quantize_q4_0},
    {Type::Q4_1, "Q4_1", kBlock, sizeof(BlockQ4_1), dequantize_q4_1, quantize_q4_1},
    {Type::Q5_0, "Q5_0", kBlock, sizeof(BlockQ5_0), dequantize_q5_0, quantize_q5_0},
    {Type::Q5_1, "Q5_1", kBlock, sizeof(BlockQ5_1), dequantize_q5_1, quantize_q5_1},
    {Type::Q8_0, "Q8_0", kBlock, sizeof(BlockQ8_0), dequantize_q8_0, quantize_q8_0},
    {Type::Q2_K, "Q2_K", kSuper, sizeof(BlockQ2_K), dequantize_q2_k, quantize_q2_k},
    {Type::Q3_K, "Q3_K", kSuper, sizeof(BlockQ3_K), dequantize_q3_k, quantize_q3_k},
    {Type::Q4_K, "Q4_K", kSuper, sizeof(BlockQ4_K), dequantize_q4_k, quantize_q4_k},
    {Type::Q5_K, "Q5_K", kSuper, sizeof(BlockQ5_K), dequantize_q5_k, quantize_q5_k},
    {Type::Q6_K, "Q6_K", kSuper, sizeof(BlockQ6_K), dequantize_q6_k, quantize_q6_k},
    {Type::IQ4_NL, "IQ4_NL", kBlock, sizeof(BlockIQ4_NL), dequantize_iq4_nl, quantize_iq4_nl},
    {Type::IQ4_XS, "IQ4_XS", kSuper, sizeof(BlockIQ4_XS), dequantize_iq4_xs, quantize_iq4_xs},
    {Type::MXFP4, "MXFP4", kBlock, sizeof(BlockMXFP4), dequantize_mxfp4, quantize_mxfp4},
};

// Runs work(first, last) over [0, count) in chunks that the threads claim one by one.
template <typename Work>
void share_out(std::size_t count, std::size_t chunk, unsigned threads, const Work &work) {
  const std::size_t chunks = (count + chunk - 1) / chunk;
  std::atomic<std::size_t> next{0};
  const auto run = [&] {
    for (std::size_t i = next.fetch_add(1); i < chunks; i = next.fetch_add(1)) {
      work(i * chunk, std::min(count, (i + 1) * chunk));
    }
  };
  std::vector<std::thread> helpers;
  const std::size_t wanted = std::min<std::size_t>(threads, chunks);
  for (std::size_t t = 1; t < wanted; ++t) {
    try {
      helpers.emplace_back(run);
    } catch (const std::system_error &) {
      break; // no more threads to be had: the ones that run do all of it
    }
  }
  run();
  for (std::thread &helper : helpers) {
    helper.join();
  }
}

float largest_magnitude(const float *x, std::size_t n) {
  float largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(x[i]);
    largest = magnitude > largest || magnitude != magnitude ? magnitude : largest; // NaNs stay
  }
  return largest;
}

// More than any block format holds: Q6_K reaches 65504 * 128 * 32. Searching among larger values
// would overflow.
constexpr float kTooLarge = 3e8f;

// Only ratios of weights count: scaled by a power of two so that the largest lies in [1, 2), and
// none so small that its columns would not be stored at all. Empty if all are zero.
std::vector<float> scaled_weights(const float *importance, std::size_t n) {
  const float largest = importance == nullptr ? 0 : largest_magnitude(importance, n);
  if (!(largest > 0)) {
    return {};
  }
  std::vector<float> weights(importance, importance + n);
  for (float &weight : weights) {
    weight = std::fmax(std::ldexp(weight, -std::ilogb(largest)), 0x1p-20f);
  }
  return weights;
}

} // namespace

std::optional<Traits> traits(std::int32_t type_id) {
  for (const Traits &format : kTable) {
    if (static_cast<std::int32_t>(format.type) == type_id) {
      return format;
    }
  }
  return std::nullopt;
}

void dequantize(const Traits &format, const std::uint8_t *src, float *dst, std::size_t n,
                unsigned threads) {
  constexpr std::size_t kChunk = 1 << 16; // elements, a multiple of every block
  share_out(n, kChunk, threads, [&](std::size_t first, std::size_t last) {
    format.dequantize(src + first / format.block_size * format.block_bytes, dst + first,
                      last - first);
  });
}

QuantizeResult quantize(const Traits &format, const float *src, std::uint8_t *dst, std::size_t rows,
                        std::size_t cols, const float *importance, unsigned threads) {
  const std::size_t row_bytes = cols / format.block_size * format.block_bytes;
  const std::size_t chunk = std::max<std::size_t>(1, (1 << 15) / std::max<std::size_t>(1, cols));
  std::atomic<std::size_t> infinite_row{rows};
  std::atomic<std::size_t> overflow_row{rows};
  const auto note = [](std::atomic<std::size_t> &first, std::size_t row) {
    std::size_t seen = first.load();
    while (row < seen && !first.compare_exchange_weak(seen, row)) {
    }
  };
  const std::vector<float> scaled = scaled_weights(importance, cols);
  const float *weights = scaled.empty() ? nullptr : scaled.data();
  share_out(rows, chunk, threads, [&](std::size_t first, std::size_t last) {
    for (std::size_t row = first; row < last; ++row) {
      const float *x = src + row * cols;
      const float largest = format.block_size > 1 ? largest_magnitude(x, cols) : 0;
      if (!std::isfinite(largest)) {
        note(infinite_row, row);
      } else if (largest > kTooLarge || !format.quantize(x, dst + row * row_bytes, cols, weights)) {
        note(overflow_row, row);
      }
    }
  });
  if (infinite_row.load() < rows) {
    return {Fault::not_finite, infinite_row.load()};
  }
  if (overflow_row.load() < rows) {
    return {Fault::overflow, overflow_row.load()};
  }
  return {};
}

} // namespace insula::quants
