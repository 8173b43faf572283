// What products read, as sums of squares by column: an importance matrix is made of them.
//
// Only there while somebody asks for it; a step costs nothing otherwise.
// Invariant: rows are added in their order and in double, whoever prepared them, so that the same
// batches give the same sums with any number of threads.
#pragma once
#include <cstdint>
#include <vector>

#include "memory.h"
#include "program.h"

namespace insula {

class Recorder {
public:
  Recorder(const std::vector<Phase> &phases, const std::vector<Weight> &weights, int max_rows);

  // Input row `row` of the product under way. Threads call it for rows of their own.
  void keep(int row, const float *x, size_t k);
  // Adds the kept rows to a phase's sums; every thread calls it, and does its share of the columns.
  void add(size_t phase, int rows, int thread, int threads);

  // Sums of squares by column, and of how many rows, for every product with this weight.
  std::vector<double> sums(int weight, uint64_t *rows) const;

private:
  struct Sums {
    std::vector<int> weights; // that read this input
    std::vector<double> squares;
    uint64_t rows = 0;
  };
  std::vector<Sums> phases_;
  size_t stride_ = 0;
  Buffer kept_; // [max_rows][stride_] floats
};

} // namespace insula
