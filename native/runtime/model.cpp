// The boundary's implementation: owns weights, pages and threads; checks what comes in.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "executor.h"
#include "insula.h"
#include "insula_isa.h"
#include "page_io.h"
#include "topology.h"

namespace insula {
namespace {

[[noreturn]] void fail(const std::string &what) { throw std::invalid_argument(what); }

// A matrix of a GGUF type as it will stand packed, without its data.
Weight shape_of(int type, int rows, int cols) {
  Weight w;
  if (!layout_of(type, &w.layout))
    fail("no kernel for tensor type " + std::to_string(type));
  if (rows <= 0 || cols <= 0 || cols % info(w.layout).block)
    fail("a row is not a whole number of blocks");
  w.rows = rows, w.cols = static_cast<size_t>(cols);
  w.bytes = static_cast<size_t>((rows + kPanel - 1) / kPanel) * panel_bytes(w.layout, w.cols);
  return w;
}

// Zeros for the positions from `from` on in a page of one head (kernels/table.h has the layout).
void clear_positions(KVType type, int head_dim, int from, uint8_t *page) {
  const size_t width = type == KVType::F32 ? 4 : type == KVType::F16 ? 2 : 1;
  const size_t n = kPageTokens, hd = static_cast<size_t>(head_dim), at = static_cast<size_t>(from);
  const size_t hp = static_cast<size_t>(pad16(head_dim)), blocks = kv_blocks(head_dim);
  // In groups of 16 positions, each of `rows` rows of 16 values.
  auto groups = [&](uint8_t *p, size_t rows, size_t size) {
    for (size_t g = 0; g < n / 16; ++g)
      for (size_t r = 0; r < rows; ++r) {
        const size_t keep = at > g * 16 ? std::min<size_t>(16, at - g * 16) : 0;
        std::memset(p + ((g * rows + r) * 16 + keep) * size, 0, (16 - keep) * size);
      }
  };
  groups(page, hd, width);
  uint8_t *values = page + n * hd * width;
  std::memset(values + at * hp * width, 0, (n - at) * hp * width);
  if (type == KVType::I8) {
    uint8_t *scales = values + n * hp;
    groups(scales, blocks, 2);
    groups(scales + n * blocks * 2, blocks, 2);
  }
}

} // namespace

struct Model::Impl {
  State s;
  ThreadPool pool;
  std::vector<Buffer> owned;
  std::unique_ptr<Executor> executor;
  std::mutex mutex;
  size_t weight_bytes = 0;
  Impl(const KernelTable *k, int threads) : pool(threads) { s.kernels = k; }

  std::vector<Run> runs(int page) const {
    if (page < 0 || page >= s.n_pages)
      fail("a page does not exist");
    std::vector<Run> out;
    for (size_t i = 0; i < s.slots.size(); ++i)
      out.push_back({s.page(static_cast<int>(i), page, 0),
                     s.head_bytes[i] * static_cast<size_t>(s.slots[i].kv_heads)});
    return out;
  }
};

Model::Model(const std::string &isa, int threads) {
  std::string error;
  const KernelTable *k = select_level(isa.c_str(), &error);
  if (!k)
    fail(error);
  impl_ = std::make_unique<Impl>(k, threads > 0 ? threads : topology().threads);
}
Model::~Model() = default;

size_t Model::packed_bytes(int type, int rows, int cols) {
  const Weight w = shape_of(type, rows, cols);
  return w.bytes;
}

void Model::pack(int type, int rows, int cols, const uint8_t *data, size_t bytes, bool drop,
                 uint8_t *out) {
  const Weight w = shape_of(type, rows, cols);
  const LayoutInfo &li = info(w.layout);
  const size_t row = w.cols / static_cast<size_t>(li.block) * static_cast<size_t>(li.file_bytes);
  if (bytes / static_cast<size_t>(rows) != row || bytes % static_cast<size_t>(rows))
    fail("tensor has " + std::to_string(bytes) + " bytes where rows * row bytes are needed");
  const int panels = (rows + kPanel - 1) / kPanel;
  const size_t pb = panel_bytes(w.layout, w.cols);
  // In runs of about 16 MB, so that the source's pages can go as soon as they are read.
  const int run = std::max<int>(1, static_cast<int>((size_t{16} << 20) / (row * kPanel)));
  for (int p0 = 0; p0 < panels; p0 += run) {
    const int p1 = std::min(panels, p0 + run);
    Claims c;
    impl_->pool.run([&](int) {
      for (int p; (p = p0 + c.claim(1)) < p1;) {
        const uint8_t *r[kPanel] = {};
        for (int i = 0; i < kPanel && p * kPanel + i < rows; ++i)
          r[i] = data + static_cast<size_t>(p * kPanel + i) * row;
        pack_panel(w.layout, r, w.cols, out + static_cast<size_t>(p) * pb);
      }
    });
    const size_t a = static_cast<size_t>(p0) * kPanel * row;
    if (drop)
      drop_pages(data + a, std::min(bytes, static_cast<size_t>(p1) * kPanel * row) - a);
  }
}

int Model::add_weight(int type, int rows, int cols, const uint8_t *data, size_t bytes, bool drop) {
  Buffer out(packed_bytes(type, rows, cols));
  pack(type, rows, cols, data, bytes, drop, out.data());
  impl_->owned.push_back(std::move(out));
  return add_packed(type, rows, cols, impl_->owned.back().data(), packed_bytes(type, rows, cols));
}

int Model::add_packed(int type, int rows, int cols, const uint8_t *data, size_t bytes) {
  Weight w = shape_of(type, rows, cols);
  if (bytes != w.bytes)
    fail("a packed tensor has " + std::to_string(bytes) + " bytes where " +
         std::to_string(w.bytes) + " are needed");
  if (reinterpret_cast<uintptr_t>(data) % 64)
    fail("packed weights must be aligned to 64 bytes");
  w.data = data;
  impl_->weight_bytes += w.bytes;
  impl_->s.weights.push_back(w);
  return static_cast<int>(impl_->s.weights.size()) - 1;
}

int Model::add_lora(std::vector<std::pair<int, int>> factors) {
  impl_->s.loras.push_back(std::move(factors));
  return static_cast<int>(impl_->s.loras.size()) - 1;
}

int Model::add_vector(const float *data, size_t n) {
  impl_->s.vectors.emplace_back(data, data + n);
  return static_cast<int>(impl_->s.vectors.size()) - 1;
}

int Model::add_freqs(const double *data, size_t n) {
  impl_->s.freqs.emplace_back(data, data + n);
  return static_cast<int>(impl_->s.freqs.size()) - 1;
}

void Model::set_program(std::vector<Op> ops, std::vector<int> widths, std::vector<Slot> slots) {
  State &s = impl_->s;
  for (int w : widths)
    if (w <= 0 || w > (1 << 24))
      fail("a buffer's width is out of range");
  for (const Slot &t : slots)
    if (t.kv_heads <= 0 || t.head_dim <= 0 || t.head_dim > 1024)
      fail("a slot's shape is wrong");
  for (const Op &o : ops)
    if (o.kind == OpKind::Attention && o.heads / std::max(1, o.kv_heads) > 32)
      fail("more than 32 query heads share a kv head");
  s.phases = compile(ops, widths, slots, s.weights, s.vectors, s.freqs, s.loras);
  s.widths = std::move(widths);
  s.slots = std::move(slots);
  s.n_vocab = s.weights[static_cast<size_t>(ops.back().weight)].rows;
}

void Model::allocate(int n_pages, KVType kv, int max_rows) {
  State &s = impl_->s;
  if (s.phases.empty())
    fail("no program");
  if (n_pages <= 0 || max_rows <= 0)
    fail("pages and rows must be positive");
  s.n_pages = n_pages, s.max_rows = max_rows, s.kv_type = kv;
  s.kv.clear(), s.buffers.clear(), s.rope.clear(), s.head_bytes.clear(), s.strides.clear();
  for (const Slot &t : s.slots) {
    s.head_bytes.push_back(kv_page_head_bytes(kv, t.head_dim));
    s.kv.emplace_back(s.head_bytes.back() * static_cast<size_t>(t.kv_heads) *
                      static_cast<size_t>(n_pages));
  }
  for (int w : s.widths) {
    s.strides.push_back((static_cast<size_t>(w) + 15) / 16 * 16);
    s.buffers.emplace_back(s.strides.back() * static_cast<size_t>(max_rows) * 4);
  }
  for (const auto &f : s.freqs)
    s.rope.emplace_back(f.size() * 2 * static_cast<size_t>(max_rows) * 4);
  impl_->executor = std::make_unique<Executor>(s, impl_->pool);
}

void Model::step(const Batch &b, float *logits) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const State &s = impl_->s;
  if (!impl_->executor)
    fail("allocate pages first");
  if (b.T <= 0 || b.T > s.max_rows)
    fail("a step takes 1 to " + std::to_string(s.max_rows) + " tokens, not " + std::to_string(b.T));
  if (b.R < 0 || b.R > b.T)
    fail("more logit rows than tokens");
  int vocab = 1 << 30, places = 1 << 30;
  for (const Phase &p : s.phases)
    for (const Op &o : p.ops) {
      if (o.kind == OpKind::Embed)
        vocab = std::min(vocab, s.weights[static_cast<size_t>(o.weight)].rows);
      if (o.kind == OpKind::Positions)
        places = std::min(places, s.weights[static_cast<size_t>(o.weight)].rows);
    }
  size_t adapters = 0;
  for (const Lora &l : s.loras)
    adapters = std::max(adapters, l.size());
  for (size_t i = 0; b.adapters && i < b.tables.size(); ++i)
    if (b.adapters[i] < -1 || b.adapters[i] >= static_cast<int>(adapters))
      fail("adapter " + std::to_string(b.adapters[i]) + " is not loaded");
  std::vector<char> seen(b.tables.size());
  for (int t = 0; t < b.T; ++t) {
    if (b.tokens[t] < 0 || b.tokens[t] >= vocab)
      fail("token " + std::to_string(b.tokens[t]) + " is not in the vocabulary of " +
           std::to_string(vocab));
    const int r = b.rows[t], pos = b.positions[t];
    if (r < 0 || r >= static_cast<int>(b.tables.size()))
      fail("a token names no table");
    const size_t ur = static_cast<size_t>(r);
    if (pos < 0 || pos / kPageTokens >= b.table_sizes[ur])
      fail("a position has no page");
    if (pos >= places)
      fail("position " + std::to_string(pos) + " of a model that knows " + std::to_string(places));
    if (t > 0 && b.rows[t - 1] == r) {
      if (pos != b.positions[t - 1] + 1)
        fail("positions of a sequence must follow one another");
    } else if (seen[ur]) {
      fail("tokens of one sequence must stand together");
    }
    seen[ur] = 1;
  }
  for (size_t i = 0; i < b.tables.size(); ++i)
    for (int k = 0; k < b.table_sizes[i]; ++k)
      if (b.tables[i][k] < 0 || b.tables[i][k] >= s.n_pages)
        fail("a page does not exist");
  for (int i = 0; i < b.R; ++i)
    if (b.logit_rows[i] < 0 || b.logit_rows[i] >= b.T)
      fail("a logit row does not exist");
  impl_->executor->step(b, logits);
}

void Model::copy_page(int from, int to) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const State &s = impl_->s;
  if (from < 0 || to < 0 || from >= s.n_pages || to >= s.n_pages)
    fail("a page does not exist");
  if (from == to)
    return;
  for (size_t i = 0; i < s.slots.size(); ++i)
    std::memcpy(s.page(static_cast<int>(i), to, 0), s.page(static_cast<int>(i), from, 0),
                s.head_bytes[i] * static_cast<size_t>(s.slots[i].kv_heads));
}

void Model::populate(int pages) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const State &s = impl_->s;
  if (pages < 0 || pages > s.n_pages)
    fail("a page does not exist");
  constexpr size_t kRun = size_t{2} << 20;
  std::vector<Run> runs;
  for (size_t i = 0; i < s.slots.size(); ++i) {
    const size_t bytes = s.head_bytes[i] * static_cast<size_t>(s.slots[i].kv_heads * pages);
    for (size_t at = 0; at < bytes; at += kRun)
      runs.push_back({s.kv[i].data() + at, std::min(kRun, bytes - at)});
  }
  Claims c;
  impl_->pool.run([&](int) {
    for (size_t i; (i = static_cast<size_t>(c.claim(1))) < runs.size();)
      insula::populate(runs[i].data, runs[i].bytes);
  });
}

uint64_t Model::save_page(int page, int tokens, uint8_t *out) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const std::vector<Run> runs = impl_->runs(page);
  size_t bytes = 0;
  for (const Run &r : runs)
    bytes += r.bytes;
  if (bytes != page_bytes())
    fail("a page's runs and its size disagree");
  if (tokens < 1 || tokens > kPageTokens)
    fail("a page has 1 to " + std::to_string(kPageTokens) + " tokens");
  const uint64_t sum = copy_out(runs, out);
  if (tokens == kPageTokens)
    return sum;
  const State &s = impl_->s;
  std::vector<Run> copied;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (int h = 0; h < s.slots[i].kv_heads; ++h)
      clear_positions(s.kv_type, s.slots[i].head_dim, tokens,
                      out + static_cast<size_t>(h) * s.head_bytes[i]);
    copied.push_back({out, runs[i].bytes});
    out += runs[i].bytes;
  }
  return checksum(copied);
}

std::vector<bool> Model::load_pages(const std::vector<int> &pages, const std::vector<int> &files,
                                    uint64_t offset, std::vector<uint64_t> &sums) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  if (pages.size() != files.size())
    fail("a file for each page is needed");
  std::vector<std::vector<Run>> runs;
  for (int page : pages)
    runs.push_back(impl_->runs(page));
  sums.assign(pages.size(), 0);
  std::vector<char> read(pages.size()); // not bool: threads write neighbours
  Claims c;
  impl_->pool.run([&](int) {
    for (size_t i; (i = static_cast<size_t>(c.claim(1))) < runs.size();)
      read[i] = read_in(files[i], offset, runs[i], &sums[i]);
  });
  return {read.begin(), read.end()};
}

int Model::n_vocab() const { return impl_->s.n_vocab; }
int Model::n_pages() const { return impl_->s.n_pages; }
int Model::max_rows() const { return impl_->s.max_rows; }
int Model::threads() const { return impl_->pool.size(); }
const char *Model::isa() const { return impl_->s.kernels->name; }
size_t Model::weight_bytes() const { return impl_->weight_bytes; }
uint64_t Model::kernel_calls() const { return impl_->s.kernels->calls->load(); }
uint64_t Model::tile_products() const {
  return impl_->s.kernels->tiles ? impl_->s.kernels->tiles->load() : 0;
}
int Model::phases() const { return static_cast<int>(impl_->s.phases.size()); }
size_t Model::page_bytes() const {
  size_t n = 0;
  for (const Slot &t : impl_->s.slots)
    n += kv_page_head_bytes(impl_->s.kv_type, t.head_dim) * static_cast<size_t>(t.kv_heads);
  return n;
}

} // namespace insula
