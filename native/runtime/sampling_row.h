// One row of logits, and finding its highest elements without sorting it.
#pragma once

#include "sampling_math.h"

#include <vector>

namespace insula::sampling {

constexpr size_t kBlock = 64; // elements under one maximum

struct Candidate {
  float logit;
  int32_t id;
};

inline bool higher(const Candidate &a, const Candidate &b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

inline bool lower_id(const Candidate &a, const Candidate &b) { return a.id < b.id; }

// The maxima of the blocks of a row. The k-th largest maximum is at most the k-th largest element
// (k blocks hold one each), so selection reads only the blocks that reach it: for k = 40 of 49,152
// some 40 of 768.
struct Row {
  const float *x = nullptr;
  size_t n = 0;
  float highest = kNever;
  std::vector<float> block;

  // Look at a row, which must outlive this; false where a value is NaN or +inf.
  bool scan(const float *values, size_t count);

  // Every finite element >= threshold, ids ascending.
  void collect(double threshold, std::vector<Candidate> *out) const;

  // The k highest, best first; fewer where fewer are finite.
  void keep_highest(size_t k, std::vector<float> *scratch, std::vector<Candidate> *out) const;

  // The id of the highest, of several the lowest id.
  int32_t argmax() const;
};

} // namespace insula::sampling
