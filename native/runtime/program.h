// From a list of ops to phases: what one barrier separates from the next.
//
// A phase is one of
//   Rows       row-wise ops, parallel over rows
//   Matmul     [norm ->] linears that share their input [-> glu | -> add], parallel over panels
//   Output     a buffer's rows to the caller, parallel over rows
//   Attention  [row-wise ops on q and k ->] store k, v -> attend, parallel over rows and heads
//   Experts    choose -> gate and up -> down -> weighted sum, parallel over experts' panels
// Fusing never changes a number: each fused op does per row what it does alone.
#pragma once
#include <utility>
#include <vector>

#include "insula.h"
#include "kernels/table.h"

namespace insula {

inline constexpr int kMaxUsed = 64; // experts that one row may use

struct Weight {
  Layout layout = Layout::F32;
  int rows = 0;
  size_t cols = 0;
  const uint8_t *data = nullptr;
  size_t bytes = 0;
};

// In which forms products want a row.
struct Forms {
  bool a32 = false, a256 = false, f32 = false, a16 = false;
  void need(Layout layout) {
    const ActForm f = info(layout).act;
    a32 |= f == ActForm::A32, a256 |= f == ActForm::A256, f32 |= f == ActForm::F32;
    a16 |= f == ActForm::A16;
  }
};

using Lora = std::vector<std::pair<int, int>>; // of each adapter: two weights, or -1

struct Phase {
  enum Kind { Rows, Matmul, Attention, Experts, Output } kind = Rows;
  std::vector<Op> ops;  // Rows: in order. Attention: what precedes it on q and k
  Op attention;         // Attention
  Op experts;           // Experts; `forms` are of gate and up
  Forms down_forms;     // Experts
  std::vector<Op> mats; // Matmul: linears (or one Logits) with the same src
  int norm = -1;        // Matmul: 1 if `norm_op` feeds it
  Op norm_op;
  bool keep_norm = false; // somebody else reads the norm's result
  bool private_ok = true; // few rows: each thread may prepare the input by itself, no barrier
  bool glu = false, add = false, logits = false;
  Op glu_op;
  int then = -1;   // Matmul: the activation that its one product goes through
  int add_to = -1; // buffer that the product is added to
  Forms forms;
  int panels = 0;
  bool per_head = true; // Attention: `ops` can run head by head
};

// Checks every index and width and fuses. Throws std::invalid_argument naming the op.
std::vector<Phase> compile(const std::vector<Op> &ops, const std::vector<int> &widths,
                           const std::vector<Slot> &slots, const std::vector<Weight> &weights,
                           const std::vector<std::vector<float>> &vectors,
                           const std::vector<std::vector<double>> &freqs,
                           const std::vector<Lora> &loras);

} // namespace insula
