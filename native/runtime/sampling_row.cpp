#include "sampling_row.h"

#include "sampling_widest.h"

namespace insula::sampling {
namespace {

// Floats as integers of the same order: -NaN < -inf < ... < -0 < 0 < ... < inf < NaN. Integer
// maxima are free to be reordered, so compilers vectorize them.
inline int32_t order_key(float v) {
  const int32_t bits = std::bit_cast<int32_t>(v);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

inline float from_order_key(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

// maxima[b] of x[64 b ...]; false where a value is NaN or +inf.
INSULA_WIDEST bool block_maxima(const float *x, size_t n, float *maxima) {
  const int32_t lowest = order_key(kNever);
  int32_t low = lowest, high = lowest;
  for (size_t b = 0; b * kBlock < n; ++b) {
    const float *v = x + b * kBlock;
    const size_t count = std::min(kBlock, n - b * kBlock);
    int32_t block_low = lowest, block_high = lowest;
    if (count == kBlock)
      for (size_t i = 0; i < kBlock; ++i) {
        const int32_t key = order_key(v[i]);
        block_low = key < block_low ? key : block_low;
        block_high = key > block_high ? key : block_high;
      }
    else
      for (size_t i = 0; i < count; ++i) {
        const int32_t key = order_key(v[i]);
        block_low = key < block_low ? key : block_low;
        block_high = key > block_high ? key : block_high;
      }
    low = std::min(low, block_low);
    high = std::max(high, block_high);
    maxima[b] = from_order_key(block_high);
  }
  return low == lowest && high <= order_key(kFloatMax);
}

} // namespace

bool Row::scan(const float *values, size_t count) {
  x = values;
  n = count;
  block.resize((n + kBlock - 1) / kBlock);
  const bool sound = block_maxima(x, n, block.data());
  highest = kNever;
  for (float peak : block)
    highest = std::max(highest, peak);
  return sound;
}

void Row::collect(double threshold, std::vector<Candidate> *out) const {
  out->clear();
  for (size_t b = 0; b < block.size(); ++b) {
    if (!(block[b] >= threshold))
      continue;
    const size_t end = std::min(n, (b + 1) * kBlock);
    for (size_t i = b * kBlock; i < end; ++i)
      if (x[i] >= threshold && x[i] > kNever)
        out->push_back({x[i], static_cast<int32_t>(i)});
  }
}

void Row::keep_highest(size_t k, std::vector<float> *scratch, std::vector<Candidate> *out) const {
  float threshold = kNever;
  if (k < block.size()) {
    *scratch = block;
    std::nth_element(scratch->begin(), scratch->begin() + (k - 1), scratch->end(),
                     [](float a, float b) { return a > b; });
    threshold = (*scratch)[k - 1];
  }
  collect(threshold, out);
  if (out->size() > k) {
    std::nth_element(out->begin(), out->begin() + k, out->end(), higher);
    out->resize(k);
  }
  std::sort(out->begin(), out->end(), higher);
}

int32_t Row::argmax() const {
  for (size_t b = 0; b < block.size(); ++b)
    if (block[b] == highest)
      for (size_t i = b * kBlock;; ++i)
        if (x[i] == highest)
          return static_cast<int32_t>(i);
  return -1;
}

} // namespace insula::sampling
