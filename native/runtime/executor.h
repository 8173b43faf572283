// Runs a compiled program for one batch on a thread pool.
#pragma once
#include <memory>
#include <vector>

#include "insula.h"
#include "memory.h"
#include "program.h"
#include "recorder.h"
#include "threads.h"

namespace insula {

// Everything `step` reads and writes, owned by the model.
struct State {
  const KernelTable *kernels = nullptr;
  std::vector<Weight> weights;
  std::vector<std::vector<float>> vectors;
  std::vector<std::vector<double>> freqs;
  std::vector<Lora> loras;
  std::vector<int> widths;
  std::vector<Slot> slots;
  std::vector<Phase> phases;
  int n_out = 0; // width of what a step gives

  int n_pages = 0, max_rows = 0;
  KVType kv_type = KVType::F16;
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
  void step(const Batch &batch, float *out);
  void record(bool on); // from now on, from nothing
  const Recorder *recorder() const { return recorder_.get(); }

private:
  struct Inputs;  // a product's input rows, in the forms that kernels take
  struct Scratch; // what one thread needs for itself
  struct Mixture; // the experts that a step's rows use
  struct Span {   // consecutive tokens of one sequence
    int first, count, table;
    int shared = 0; // leading chunks of its context that others in the batch read too
    int slot = -1;  // where its rows stand in partial_
  };
  struct Group { // rows that read one chunk together: shared_rows_[first .. first + count)
    int chunk, first, count;
  };

  void run(int thread);
  void row_op(const Op &o, int thread, int row, int head0, int heads);
  void rope_tables(int row);
  void lora(const Op &o, int thread, int row);
  void rows_phase(const Phase &p, int thread, Claims &c);
  void matmul_phase(const Phase &p, int thread, Claims *c, Shares &panels);
  void output_phase(const Phase &p, Claims &c);
  const uint8_t *next_weights(size_t phase, int thread) const;
  void place_row(const Forms &forms, const float *x, size_t k, const ActSet &set, int at);
  // Experts, in experts.cpp.
  void choose(const Op &e, int row);
  void group(const Op &e);
  void experts_phase(const Phase &p, int thread, Claims *c);
  // Attention, in attention.cpp.
  void plan_attention();
  void share(std::vector<int> spans, int limit);
  void attention_phase(const Phase &p, int thread, Claims *c);
  void store_head(const Op &a, int row, int head);
  int first_chunk(const Op &a, int row) const;
  int sees(const Op &a, int row) const;
  void chunk(const Op &a, int thread, const int *rows, int n, int head, int chunk);
  float *partial(const Op &a, int slot, int chunk, int head);
  void keep_partial(const Op &a, int thread, int slot, int at, int chunk, int head);
  void shared_chunks(const Op &a, int thread, Claims &c);
  int slot_of(int row) const;
  void attend(const Op &a, int thread, const Span &s, int row0, int n, int head, int kept);

  State &s_;
  ThreadPool &pool_;
  const Batch *b_ = nullptr;
  float *out_ = nullptr;
  std::vector<Span> spans_;
  std::vector<int> ends_; // per row: its sequence's last position in this step + 1
  int longest_ = 0;       // largest position + 1
  bool split_ = false;    // few long sequences: threads share out their chunks
  std::vector<Group> groups_;
  std::vector<int> shared_rows_;
  int partial_chunks_ = 0; // chunks that a row has room for in partial_
  std::vector<Claims> claims_;
  std::vector<Shares> panels_; // per phase, the panels of its products
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::unique_ptr<Inputs> shared_;
  std::unique_ptr<Mixture> mixture_;
  std::unique_ptr<Recorder> recorder_; // none unless asked for
  size_t max_k_ = 0;
  std::vector<float> partial_; // states of chunks that had a task of their own
};

} // namespace insula
