// The whole engine boundary: a model is weights, a program of ops and pages of state;
// `step` runs the program for a batch of tokens in one call.
//
// Nothing here knows an architecture, a file or Python. Errors are std::invalid_argument (the
// caller's) and std::bad_alloc.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace insula {

enum class OpKind : uint8_t {
  Embed,
  Positions,
  Norm,
  Linear,
  Lora,
  Rope,
  Attention,
  Act,
  Glu,
  Experts,
  Add,
  Scale,
  Logits
};

// One op of ops/graph.py. Buffers, weights, vectors and frequency tables are indices; -1: none.
struct Op {
  OpKind kind = OpKind::Embed;
  int dst = -1, src = -1, k = -1, v = -1; // Glu: src gate, k up. Attention: src q. Rope: dst
  int weight = -1, bias = -1;             // Norm: both vectors; Linear: weight, and bias a vector
                                          // Attention: bias the sinks
  // Experts: k the scores; weight and bias the gates', all experts' rows one after the other.
  int lora = -1; // Lora: what add_lora returned
  int up = -1, up_bias = -1, down = -1, down_bias = -1, experts = 0, used = 0;
  int heads = 1, kv_heads = 1, head_dim = 0, slot = -1, window = 0;
  int freqs = -1, act = 0;
  bool layer_norm = false, neox = false, causal = true;
  bool among_used = true; // Experts: their weights add up to 1
  float eps = 0, scale = 1, softcap = 0, mscale = 1;
};

const char *op_name(OpKind kind);

// How pages hold keys and values. I8: blocks of 32 dimensions of a position share a float16 scale.
enum class KVType : uint8_t { F16, F32, I8 };

struct Slot {
  int kv_heads = 0, head_dim = 0;
};

struct Batch {
  const int32_t *tokens = nullptr;    // T
  const int32_t *positions = nullptr; // T
  const int32_t *rows = nullptr;      // T: which table token t belongs to
  int T = 0;
  std::vector<const int32_t *> tables; // page ids of each sequence
  std::vector<int> table_sizes;
  const int32_t *adapters = nullptr;   // of each sequence, -1: none; or null: of nobody
  const int32_t *logit_rows = nullptr; // R: indices into T
  int R = 0;
};

class Model {
public:
  // isa: a level's name or empty for the best one. threads: 0 for the machine's choice.
  Model(const std::string &isa, int threads);
  ~Model();
  Model(const Model &) = delete;
  Model &operator=(const Model &) = delete;

  // Packs a matrix [rows, cols] of GGUF type `type` from file order; returns its index.
  // drop: `data` lies in a file mapping whose pages may be given back once read.
  int add_weight(int type, int rows, int cols, const uint8_t *data, size_t bytes, bool drop);
  // The same in two steps: pack() writes packed_bytes() to `out`, in this process or an earlier
  // one, and add_packed() takes them where they lie. `data` must outlive the model.
  static size_t packed_bytes(int type, int rows, int cols);
  void pack(int type, int rows, int cols, const uint8_t *data, size_t bytes, bool drop,
            uint8_t *out);
  int add_packed(int type, int rows, int cols, const uint8_t *data, size_t bytes);
  // For an op Lora: the factors (weights [r, in] and [out, r]) of each adapter, -1: it has none.
  int add_lora(std::vector<std::pair<int, int>> factors);
  int add_vector(const float *data, size_t n);
  int add_freqs(const double *data, size_t n);
  // Checks every index and width, then fuses what it knows. Called once.
  void set_program(std::vector<Op> ops, std::vector<int> widths, std::vector<Slot> slots);
  // Address space for `n` pages of 64 tokens; memory is used when a page is first written.
  void allocate(int n_pages, KVType kv, int max_rows);

  // logits: R x n_vocab float32.
  void step(const Batch &batch, float *logits);
  void copy_page(int from, int to);
  // Memory for the first pages now, and not when they are first written.
  void populate(int pages);
  // A page's bytes, slot after slot, to out[page_bytes]; returns their checksum (page_io.h).
  // Positions from `tokens` on, which may hold somebody else's, come out as zeros.
  uint64_t save_page(int page, int tokens, uint8_t *out);
  // Fills pages with the bytes at `offset` of open files, on all threads. sums: of what was read;
  // a page whose file ends too soon or cannot be read is false, and holds anything.
  std::vector<bool> load_pages(const std::vector<int> &pages, const std::vector<int> &files,
                               uint64_t offset, std::vector<uint64_t> &sums);

  int n_vocab() const;
  int n_pages() const;
  int max_rows() const;
  int threads() const;
  const char *isa() const;
  size_t page_bytes() const;
  size_t weight_bytes() const;
  uint64_t kernel_calls() const;
  uint64_t tile_products() const; // of matrix tiles, by all models of this level
  int phases() const;

private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

} // namespace insula
