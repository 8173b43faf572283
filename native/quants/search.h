// The searches behind the quantizers: which scale (and minimum) loses least on a group.
//
// Owns: weighted least-squares fits over a small set of trial scales. The ideas, the weights and
// the trial ranges are those of llama.cpp's K-quants (ggml-quants.c, MIT; Kawrakow,
// github.com/ggml-org/llama.cpp/pull/1684), written anew.
// Invariants: inputs are finite; every float is clamped before it becomes an integer; sums run
// over eight fixed lanes, so a result does not depend on the compiler's vector width.
#pragma once

#include <cmath>
#include <cstdint>

namespace insula::quants {

constexpr int kLanes = 8;
constexpr float kBetter =
    1.000001f;                  // see fit_symmetric; nothing beside what three or four bits lose
constexpr float kTiny = 1e-15f; // a group whose values are all smaller is stored as zeros
constexpr float kLargestHalf = 65504.0f; // what a scale or a minimum may be

inline float sum_lanes(const float *lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Nearest integer, ties to even, after clamping to [low, high]; |low|, |high| < 2^22. A NaN, which
// only a scale that overflowed leads to, becomes low.
inline float round_within(float value, float low, float high) {
  value = value > low ? value : low;
  value = value < high ? value : high;
  constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it leaves no fraction bits
  return (value + magic) - magic;
}

template <int N> inline float dot(const float *a, const float *b) {
  float lanes[kLanes] = {};
  for (int j = 0; j < N; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      lanes[k] += a[j + k] * b[j + k];
    }
  }
  return sum_lanes(lanes);
}

struct Trial {
  float first; // what the first trial adds to the highest level
  float step;
  int count;
};

struct Affine {
  float scale = 0;
  float min = 0; // <= 0: the value that level 0 stands for
};

// x ~ scale * q + min with q in 0..levels, min <= 0. Minimizes the weighted squared error over
// `trial.count + 1` scales, with scale and min fitted to the levels of each. q gets N levels.
template <int N>
inline Affine fit_affine(const float *x, const float *w, float levels, Trial trial, float *q) {
  float min = x[0];
  float max = x[0];
  for (int j = 1; j < N; ++j) {
    min = x[j] < min ? x[j] : min;
    max = x[j] > max ? x[j] : max;
  }
  min = min > 0 ? 0 : min;
  if (!(max - min > kTiny)) {
    for (int j = 0; j < N; ++j) {
      q[j] = 0;
    }
    return {0, min};
  }
  float wx[N];
  float lanes_w[kLanes] = {};
  float lanes_x[kLanes] = {};
  for (int j = 0; j < N; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      wx[j + k] = w[j + k] * x[j + k];
      lanes_w[k] += w[j + k];
      lanes_x[k] += wx[j + k];
    }
  }
  const float sum_w = sum_lanes(lanes_w);
  const float sum_x = sum_lanes(lanes_x);
  // The error of (scale, min) on given levels, less the constant sum of w x^2, is a polynomial in
  // sums that are needed anyway; but it cancels badly, so it is summed as squares.
  const auto error = [&](const float *levels_N, Affine fit) {
    float lanes[kLanes] = {};
    for (int j = 0; j < N; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const float e = fit.scale * levels_N[j + k] + fit.min - x[j + k];
        lanes[k] += w[j + k] * (e * e);
      }
    }
    return sum_lanes(lanes);
  };
  Affine best{(max - min) / levels, min};
  // Trials count from the best minimum so far: the fit then moves both ends of the range.
  const auto assign = [&](float steps, float *levels_N) {
    const float inverse = steps / (max - best.min);
    for (int j = 0; j < N; ++j) {
      levels_N[j] = round_within(inverse * (x[j] - best.min), 0, levels);
    }
  };
  assign(levels, q);
  float best_error = error(q, best);
  float trial_q[N];
  for (int t = 0; t <= trial.count; ++t) {
    if (!(max - best.min > kTiny)) {
      break;
    }
    assign(levels + trial.first + trial.step * static_cast<float>(t), trial_q);
    float lanes_l[kLanes] = {};
    float lanes_l2[kLanes] = {};
    float lanes_xl[kLanes] = {};
    for (int j = 0; j < N; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const float wl = w[j + k] * trial_q[j + k];
        lanes_l[k] += wl;
        lanes_l2[k] += wl * trial_q[j + k];
        lanes_xl[k] += wx[j + k] * trial_q[j + k];
      }
    }
    const float sum_l = sum_lanes(lanes_l);
    const float sum_l2 = sum_lanes(lanes_l2);
    const float sum_xl = sum_lanes(lanes_xl);
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) {
      continue;
    }
    Affine fit{(sum_w * sum_xl - sum_x * sum_l) / determinant,
               (sum_l2 * sum_x - sum_l * sum_xl) / determinant};
    if (fit.min > 0) {
      fit = {sum_xl / sum_l2, 0};
    }
    if (!(-fit.min <= kLargestHalf && fit.scale <= kLargestHalf)) {
      continue; // better, but nowhere to be written
    }
    const float trial_error = error(trial_q, fit);
    if (trial_error < best_error) {
      best_error = trial_error;
      best = fit;
      for (int j = 0; j < N; ++j) {
        q[j] = trial_q[j];
      }
    }
  }
  return best;
}

// x ~ scale * q with q in -levels..levels-1, trials around the scale that gives the largest value
// the level -levels. Returns the scale; q gets N levels. better: how many times as much a trial
// must explain to count as one; above 1 rounding does not choose among equals.
template <int N>
inline float fit_symmetric(const float *x, const float *w, int levels, float *q,
                           float better = 1.0f) {
  float largest = 0;
  for (int j = 0; j < N; ++j) {
    largest = std::fabs(x[j]) > std::fabs(largest) ? x[j] : largest;
  }
  if (!(std::fabs(largest) > kTiny)) {
    for (int j = 0; j < N; ++j) {
      q[j] = 0;
    }
    return 0;
  }
  const auto n = static_cast<float>(levels);
  float wx[N];
  for (int j = 0; j < N; ++j) {
    wx[j] = w[j] * x[j];
  }
  float best_scale = 0;
  float best_gain = 0; // how much of sum w x^2 the fit explains: sumlx^2 / suml2
  float best_inverse = -n / largest;
  // The plain scale first, so that a tie keeps it.
  for (int i = 0; i <= 18; ++i) {
    const int t = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;
    const float inverse = -(n + 0.1f * static_cast<float>(t)) / largest;
    float lanes_l2[kLanes] = {};
    float lanes_xl[kLanes] = {};
    for (int j = 0; j < N; j += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const float l = round_within(inverse * x[j + k], -n, n - 1);
        lanes_l2[k] += w[j + k] * l * l;
        lanes_xl[k] += wx[j + k] * l;
      }
    }
    const float sum_l2 = sum_lanes(lanes_l2);
    const float sum_xl = sum_lanes(lanes_xl);
    if (sum_l2 > 0 && sum_xl * sum_xl > best_gain * better * sum_l2) {
      best_scale = sum_xl / sum_l2;
      best_gain = best_scale * sum_xl;
      best_inverse = inverse;
    }
  }
  for (int j = 0; j < N; ++j) {
    q[j] = round_within(best_inverse * x[j], -n, n - 1);
  }
  return best_scale;
}

} // namespace insula::quants
