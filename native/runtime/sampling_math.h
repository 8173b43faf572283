// The arithmetic of sampling, written out so that every machine gets the same bits: exp, log, and
// sums in a fixed order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace insula::sampling {

constexpr float kNever =
    -std::numeric_limits<float>::infinity(); // the logit of a token that is out
constexpr float kFloatMax = std::numeric_limits<float>::max();
constexpr double kLn2 = 0.69314718055994530942;
constexpr size_t kLanes = 8; // partial sums of a long sum: element i belongs to lane i % 8

// exp for x <= 0, to about one unit in the last place; exactly 0 below -708 (no denormals, whose
// handling is a mode of the thread). Plain products and sums, so that compilers vectorize it
// without changing a bit. Cody-Waite reduction, Taylor series to degree 13 on |r| <= ln(2) / 2.
inline double exp_nonpositive(double x) {
  constexpr double round_to_integer = 6755399441055744.0; // 1.5 * 2^52
  const double clamped = x > -708.0 ? x : -708.0;
  const double shifted = clamped * 1.4426950408889634 + round_to_integer;
  const double k = shifted - round_to_integer;
  const double r = (clamped - k * 0x1.62e42fefa0000p-1) - k * 0x1.cf79abc9e3b3ap-40;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  // The low bits of `shifted` hold k in two's complement: move them into the exponent.
  const uint64_t exponent = (std::bit_cast<uint64_t>(shifted) + 1023) << 52;
  const double result = p * std::bit_cast<double>(exponent);
  const uint64_t keep = -static_cast<uint64_t>(x > -708.0); // a branch would keep vectors away
  return std::bit_cast<double>(std::bit_cast<uint64_t>(result) & keep);
}

// log for a normal x > 0.
double log_positive(double x);

inline double combine(const double (&lane)[kLanes]) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// sum of exp((x_i - highest) * scale); weights, where asked for, are kept.
double sum_exp(const float *x, size_t n, double highest, double scale, double *weights);

struct Entropy {
  double nats;
  size_t count; // of elements that are not -inf
};

// -sum p log p over weights as `sum_exp` leaves them, total their sum.
Entropy entropy(const float *x, size_t n, double highest, double scale, const double *weights,
                double total);

// The standard deviation of the elements that are not -inf (at least one).
double standard_deviation(const float *x, size_t n);

// base^n, the same bits everywhere; inf where that is too large.
double power(double base, uint64_t n);

// An adjusted logit stays finite; -inf, a token that is out, stays so.
inline float saturate(double v) {
  if (v == -std::numeric_limits<double>::infinity())
    return kNever;
  return static_cast<float>(std::clamp(v, -static_cast<double>(kFloatMax), double{kFloatMax}));
}

} // namespace insula::sampling
