// Runs a compiled program for one batch on a thread pool.
#pragma once
#include <memory>
#include <vector>

#include "insula.h"
#include "memory.h"
#include "program.h"
#include "threads.h"

namespace insula {

// Everything `step` reads and writes, owned by the model.
struct State {
  const KernelTable *kernels = nullptr;
  std::vector<Weight> weights;
  std::vector<std::vector<float>> vectors;
  std::vector<std::vector<double>> freqs;
  std::vector<int> widths;
  std::vector<Slot> slots;
  std::vector<Phase> phases;
  int n_vocab = 0;

  int n_pages = 0, max_rows = 0;
  bool kv_f32 = false;
  std::vector<Buffer> kv;         // per slot: [page][kv_head][elements]
  std::vector<size_t> head_bytes; // per slot: one page of one head
  std::vector<Buffer> buffers;    // per graph buffer: [max_rows][stride]
  std::vector<size_t> strides;    // floats from row to row
  std::vector<Buffer> rope;       // per frequency table: [max_rows][pairs] of (cos, sin)

  float *row(int buffer, int r) const {
    return buffers[static_cast<size_t>(buffer)].as<float>() +
           static_cast<size_t>(r) * strides[static_cast<size_t>(buffer)];
  }
  uint8_t *page(int slot, int page, int head) const {
    const size_t s = static_cast<size_t>(slot);
    return kv[s].data() + (static_cast<size_t>(page) * static_cast<size_t>(slots[s].kv_heads) +
                           static_cast<size_t>(head)) *
                              head_bytes[s];
  }
};

class Executor {
public:
  Executor(State &state, ThreadPool &pool);
  ~Executor();
  void step(const Batch &batch, float *logits);

private:
  struct Inputs;  // a product's input rows, in the forms that kernels take
  struct Scratch; // what one thread needs for itself
  struct Span {   // consecutive tokens of one sequence
    int first, count, table;
  };

  void run(int thread);
  void row_op(const Op &o, int row, int head0, int heads);
  void rope_tables(int row);
  void rows_phase(const Phase &p, Claims &c);
  void matmul_phase(const Phase &p, int thread, Claims *c, Shares &panels);
  const uint8_t *next_weights(size_t phase, int thread) const;
  void place_row(const Phase &p, const float *x, const ActSet &set, int at);
  void attention_phase(const Phase &p, int thread, Claims *c);
  void store_head(const Op &a, int row, int head);
  void attend(const Op &a, int thread, int row0, int rows, int head, int chunk0, int chunk1,
              bool partial);

  State &s_;
  ThreadPool &pool_;
  const Batch *b_ = nullptr;
  float *logits_ = nullptr;
  std::vector<Span> spans_;
  bool alone_ = false; // every token of the batch belongs to another sequence
  int longest_ = 0;    // largest position + 1
  std::vector<Claims> claims_;
  std::vector<Shares> panels_; // per phase, the panels of its products
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::unique_ptr<Inputs> shared_;
  size_t max_k_ = 0;
  std::vector<float> partial_; // attention chunks of long contexts: m, l, o
};

} // namespace insula
