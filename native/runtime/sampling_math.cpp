#include "sampling_math.h"

#include "sampling_widest.h"

#include <cmath>

namespace insula::sampling {
namespace {

// weights[i] = exp((x[i] - highest) * scale). Element by element, so vectors of any width give the
// same bits.
INSULA_WIDEST void exp_each(const float *x, size_t n, double highest, double scale,
                            double *weights) {
  for (size_t i = 0; i < n; ++i)
    weights[i] = exp_nonpositive((static_cast<double>(x[i]) - highest) * scale);
}

// Lanes of the elements that are not -inf: their sum, and how many they are. Lanes do not meet, so
// here too vectors of any width give the same bits.
INSULA_WIDEST void add_each(const float *x, size_t n, double *sums, double *counts) {
  double sum[kLanes] = {}, count[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) {
      const double in = x[i + j] > kNever ? 1.0 : 0.0;
      count[j] += in;
      sum[j] += in > 0.0 ? static_cast<double>(x[i + j]) : 0.0;
    }
  for (size_t j = 0; i < n; ++i, ++j) {
    const double in = x[i] > kNever ? 1.0 : 0.0;
    count[j] += in;
    sum[j] += in > 0.0 ? static_cast<double>(x[i]) : 0.0;
  }
  for (size_t j = 0; j < kLanes; ++j) {
    sums[j] = sum[j];
    counts[j] = count[j];
  }
}

// Lanes of (x - mean)^2.
INSULA_WIDEST void add_squares(const float *x, size_t n, double mean, double *squares) {
  double lane[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) {
      const double d = x[i + j] > kNever ? static_cast<double>(x[i + j]) - mean : 0.0;
      lane[j] += d * d;
    }
  for (size_t j = 0; i < n; ++i, ++j) {
    const double d = x[i] > kNever ? static_cast<double>(x[i]) - mean : 0.0;
    lane[j] += d * d;
  }
  for (size_t j = 0; j < kLanes; ++j)
    squares[j] = lane[j];
}

} // namespace

// x = 2^k m with m in [1/sqrt 2, sqrt 2), log m = 2 atanh((m-1)/(m+1)).
double log_positive(double x) {
  uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t k = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++k;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 0.0;
  for (int n = 25; n >= 3; n -= 2)
    p = (p + 1.0 / n) * z;
  const double log_m = 2.0 * s + 2.0 * s * p;
  const double kd = static_cast<double>(k);
  return kd * 0x1.62e42fefa0000p-1 + (log_m + kd * 0x1.cf79abc9e3b3ap-40);
}

double sum_exp(const float *x, size_t n, double highest, double scale, double *weights) {
  constexpr size_t chunk = 256; // a multiple of kLanes
  double buffer[chunk];
  double lane[kLanes] = {};
  for (size_t start = 0; start < n; start += chunk) {
    const size_t count = std::min(chunk, n - start);
    double *w = weights ? weights + start : buffer;
    exp_each(x + start, count, highest, scale, w);
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (size_t j = 0; j < kLanes; ++j)
        lane[j] += w[i + j];
    for (size_t j = 0; i < count; ++i, ++j)
      lane[j] += w[i];
  }
  return combine(lane);
}

Entropy entropy(const float *x, size_t n, double highest, double scale, const double *weights,
                double total) {
  const double log_total = log_positive(total);
  double lane[kLanes] = {};
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    count += x[i] > kNever;
    if (weights[i] > 0.0) { // 0 log 0 = 0
      const double surprise = log_total - (static_cast<double>(x[i]) - highest) * scale;
      lane[i % kLanes] += weights[i] / total * surprise;
    }
  }
  return {combine(lane), count};
}

double standard_deviation(const float *x, size_t n) {
  double sums[kLanes] = {}, counts[kLanes] = {}, squares[kLanes] = {};
  add_each(x, n, sums, counts);
  const double count = combine(counts);
  add_squares(x, n, combine(sums) / count, squares);
  return std::sqrt(combine(squares) / count);
}

double power(double base, uint64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1, base *= base)
    if (n & 1)
      result *= base;
  return result;
}

} // namespace insula::sampling
