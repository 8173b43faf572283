#include "recorder.h"

#include <algorithm>
#include <cstring>

namespace insula {

Recorder::Recorder(const std::vector<Phase> &phases, const std::vector<Weight> &weights,
                   int max_rows) {
  for (const Phase &p : phases) {
    Sums s;
    if (p.kind == Phase::Matmul && !p.logits) {
      for (const Op &o : p.mats)
        s.weights.push_back(o.weight);
      s.squares.resize(weights[static_cast<size_t>(s.weights[0])].cols);
      stride_ = std::max(stride_, s.squares.size());
    }
    phases_.push_back(std::move(s));
  }
  kept_ = Buffer(std::max<size_t>(1, stride_) * static_cast<size_t>(max_rows) * sizeof(float));
}

void Recorder::keep(int row, const float *x, size_t k) {
  std::memcpy(kept_.as<float>() + static_cast<size_t>(row) * stride_, x, k * sizeof(float));
}

void Recorder::add(size_t phase, int rows, int thread, int threads) {
  Sums &s = phases_[phase];
  const size_t n = s.squares.size(), at = static_cast<size_t>(thread);
  const size_t first = n * at / static_cast<size_t>(threads);
  const size_t last = n * (at + 1) / static_cast<size_t>(threads);
  for (int r = 0; r < rows; ++r) {
    const float *x = kept_.as<float>() + static_cast<size_t>(r) * stride_;
    for (size_t i = first; i < last; ++i)
      s.squares[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  if (thread == 0)
    s.rows += static_cast<uint64_t>(rows);
}

std::vector<double> Recorder::sums(int weight, uint64_t *rows) const {
  std::vector<double> all;
  *rows = 0;
  for (const Sums &s : phases_) {
    if (std::find(s.weights.begin(), s.weights.end(), weight) == s.weights.end())
      continue;
    all.resize(s.squares.size());
    for (size_t i = 0; i < all.size(); ++i)
      all[i] += s.squares[i];
    *rows += s.rows;
  }
  return all;
}

} // namespace insula
