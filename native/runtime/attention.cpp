// The executor's attention: who reads which chunk of whose pages, and the order of the merges.
//
// A chunk's state per query (maximum, sum, weighted values) depends on that query and chunk alone,
// and states are merged in the order of the chunks, whoever computed them. So it is free to choose
// who computes a chunk: the row's own task, a task for that chunk alone (one long sequence on
// several threads), or one task for all the sequences that share its pages.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "scratch.h"

namespace insula {
namespace {

constexpr int kPagesPerChunk = kAttnChunk / kPageTokens;
constexpr int kSharingRows = 8; // spans of at most so many rows read shared chunks together
constexpr size_t kPartialFloats = size_t{16} << 20; // most that partial_ may hold

} // namespace

// Finds what is the same for all layers of a step: shared chunks, and room for their states.
void Executor::plan_attention() {
  groups_.clear();
  shared_rows_.clear();
  int heads = 0;
  size_t floats = 0; // of a row and chunk
  for (const Phase &p : s_.phases)
    if (p.kind == Phase::Attention) {
      const Op &a = p.attention;
      heads = std::max(heads, a.kv_heads);
      floats = std::max(floats,
                        static_cast<size_t>(a.heads) * static_cast<size_t>(pad16(a.head_dim) + 2));
    }
  split_ = false;
  if (!floats)
    return;
  const int most = (longest_ + kAttnChunk - 1) / kAttnChunk;
  const bool alone = static_cast<int>(spans_.size()) == b_->T;
  split_ = alone && most > 1 && b_->T * heads < 8 * pool_.size();
  int slots = 0;
  std::vector<int> sharing;
  for (size_t i = 0; i < spans_.size(); ++i)
    if (spans_[i].count <= kSharingRows && b_->positions[spans_[i].first] >= kAttnChunk) {
      sharing.push_back(static_cast<int>(i));
      slots += spans_[i].count;
    }
  partial_chunks_ = split_ ? most : 0;
  if (sharing.size() > 1) {
    const size_t room = kPartialFloats / (floats * static_cast<size_t>(slots));
    share(std::move(sharing), static_cast<int>(std::min<size_t>(room, 1 << 20)));
  }
  slots = 0;
  for (Span &s : spans_)
    if (split_ || s.shared) {
      s.slot = slots, slots += s.count;
      partial_chunks_ = std::max(partial_chunks_, s.shared);
    }
  const size_t need = static_cast<size_t>(slots) * static_cast<size_t>(partial_chunks_) * floats;
  if (partial_.size() < need)
    partial_.resize(need);
}

// Chunk by chunk, the spans whose pages are the same and complete: pages that nobody writes.
void Executor::share(std::vector<int> spans, int limit) {
  struct Work {
    int chunk;
    std::vector<int> spans;
  };
  std::vector<Work> work;
  work.push_back({0, std::move(spans)});
  auto pages = [&](int span, int chunk) {
    const size_t table = static_cast<size_t>(spans_[static_cast<size_t>(span)].table);
    return b_->tables[table] + chunk * kPagesPerChunk;
  };
  while (!work.empty()) {
    Work w = std::move(work.back());
    work.pop_back();
    if (w.chunk >= limit)
      continue;
    auto before = [&](int a, int b) {
      const int32_t *x = pages(a, w.chunk), *y = pages(b, w.chunk);
      return std::lexicographical_compare(x, x + kPagesPerChunk, y, y + kPagesPerChunk);
    };
    std::erase_if(w.spans, [&](int i) {
      return b_->positions[spans_[static_cast<size_t>(i)].first] < (w.chunk + 1) * kAttnChunk;
    });
    std::sort(w.spans.begin(), w.spans.end(), before);
    for (size_t i = 0, j; i < w.spans.size(); i = j) {
      for (j = i + 1; j < w.spans.size() && !before(w.spans[i], w.spans[j]);)
        ++j;
      if (j - i < 2)
        continue;
      Group g{w.chunk, static_cast<int>(shared_rows_.size()), 0};
      for (size_t k = i; k < j; ++k) {
        Span &s = spans_[static_cast<size_t>(w.spans[k])];
        s.shared = w.chunk + 1;
        for (int r = 0; r < s.count; ++r)
          shared_rows_.push_back(s.first + r);
        g.count += s.count;
      }
      groups_.push_back(g);
      work.push_back({w.chunk + 1, std::vector<int>(w.spans.begin() + static_cast<long>(i),
                                                    w.spans.begin() + static_cast<long>(j))});
    }
  }
}

void Executor::store_head(const Op &a, int row, int head) {
  const int pos = b_->positions[row];
  const int page = b_->tables[static_cast<size_t>(b_->rows[row])][pos / kPageTokens];
  const size_t at = static_cast<size_t>(head * a.head_dim);
  s_.kernels->store_kv(s_.row(a.k, row) + at, s_.row(a.v, row) + at, a.head_dim, pos % kPageTokens,
                       s_.kv_type, s_.page(a.slot, page, head));
}

int Executor::first_chunk(const Op &a, int row) const {
  return a.window ? std::max(0, b_->positions[row] - a.window + 1) / kAttnChunk : 0;
}

// How many positions a row sees, counted from the sequence's first one.
int Executor::sees(const Op &a, int row) const {
  return a.causal ? b_->positions[row] + 1 : ends_[static_cast<size_t>(row)];
}

// States of `n` rows against one chunk of one KV head, in the thread's m2, l2 and o2. The rows have
// the chunk's pages in common.
void Executor::chunk(const Op &a, int thread, const int *rows, int n, int head, int chunk) {
  Scratch &t = *scratch_[static_cast<size_t>(thread)];
  const int G = a.heads / a.kv_heads, base = chunk * kAttnChunk;
  const float *q[kMostQueries];
  int lo[kMostQueries], hi[kMostQueries], last = 0;
  for (int r = 0; r < n; ++r)
    last = std::max(last, sees(a, rows[r]));
  const int len = std::min(kAttnChunk, last - base);
  for (int r = 0; r < n; ++r) {
    const int pos = b_->positions[rows[r]], from = a.window ? pos - a.window + 1 : 0;
    for (int g = 0; g < G; ++g) {
      q[r * G + g] = s_.row(a.src, rows[r]) + static_cast<size_t>((head * G + g) * a.head_dim);
      lo[r * G + g] = std::clamp(from - base, 0, len);
      hi[r * G + g] = std::clamp(sees(a, rows[r]) - base, 0, len);
    }
  }
  const int32_t *table = b_->tables[static_cast<size_t>(b_->rows[rows[0]])];
  const uint8_t *pages[kPagesPerChunk];
  for (int i = 0; i * kPageTokens < len; ++i)
    pages[i] = s_.page(a.slot, table[chunk * kPagesPerChunk + i], head);
  AttnChunk k{};
  k.q = q, k.n = n * G, k.head_dim = a.head_dim;
  k.pages = pages, k.positions = len, k.lo = lo, k.hi = hi;
  k.scale = a.scale, k.softcap = a.softcap, k.kv = s_.kv_type;
  k.scores = t.scores.as<float>();
  k.m = t.m2.as<float>(), k.l = t.l2.as<float>(), k.o = t.o2.as<float>();
  s_.kernels->attention(k);
}

// The kept state of a row's queries of one KV head against a chunk: m[G], l[G], o[G][hp].
float *Executor::partial(const Op &a, int slot, int chunk, int head) {
  const size_t place =
      static_cast<size_t>(slot) * static_cast<size_t>(partial_chunks_) + static_cast<size_t>(chunk);
  const size_t query =
      place * static_cast<size_t>(a.heads) + static_cast<size_t>(head * (a.heads / a.kv_heads));
  return partial_.data() + query * static_cast<size_t>(pad16(a.head_dim) + 2);
}

// Row `at` of the thread's states goes to its place.
void Executor::keep_partial(const Op &a, int thread, int slot, int at, int chunk, int head) {
  Scratch &t = *scratch_[static_cast<size_t>(thread)];
  const size_t G = static_cast<size_t>(a.heads / a.kv_heads), row = static_cast<size_t>(at) * G;
  const size_t hp = static_cast<size_t>(pad16(a.head_dim));
  float *out = partial(a, slot, chunk, head);
  std::memcpy(out, t.m2.as<float>() + row, G * 4);
  std::memcpy(out + G, t.l2.as<float>() + row, G * 4);
  std::memcpy(out + 2 * G, t.o2.as<float>() + row * hp, G * hp * 4);
}

// The chunks that several sequences share, once for all of them.
void Executor::shared_chunks(const Op &a, int thread, Claims &c) {
  const int heads = a.kv_heads, block = std::max(1, kQueries / (a.heads / heads));
  int total = 0;
  for (const Group &g : groups_)
    total += (g.count + block - 1) / block;
  for (int i; (i = c.claim(1)) < total * heads;) {
    int b = i / heads;
    const int head = i % heads;
    const Group *g = groups_.data();
    for (int n; b >= (n = (g->count + block - 1) / block); ++g)
      b -= n;
    const int *rows = shared_rows_.data() + g->first + b * block;
    const int n = std::min(block, g->count - b * block);
    int from = g->chunk + 1; // windows may have left the chunk behind for all of them
    for (int r = 0; r < n; ++r)
      from = std::min(from, first_chunk(a, rows[r]));
    if (from > g->chunk)
      continue;
    chunk(a, thread, rows, n, head, g->chunk);
    for (int r = 0; r < n; ++r)
      keep_partial(a, thread, slot_of(rows[r]), r, g->chunk, head);
  }
}

int Executor::slot_of(int row) const {
  auto after = std::upper_bound(spans_.begin(), spans_.end(), row,
                                [](int r, const Span &s) { return r < s.first; });
  const Span &s = *--after;
  return s.slot + row - s.first;
}

// Rows row0.. of one sequence against all that they see of one KV head. States that a task of their
// own has computed (`kept` leading chunks) are taken from partial_.
void Executor::attend(const Op &a, int thread, const Span &s, int row0, int n, int head, int kept) {
  Scratch &t = *scratch_[static_cast<size_t>(thread)];
  const int G = a.heads / a.kv_heads, hp = pad16(a.head_dim);
  float *m = t.m.as<float>(), *l = t.l.as<float>(), *o = t.o.as<float>();
  int rows[kQueries];
  for (int r = 0; r < n; ++r)
    rows[r] = row0 + r;
  for (int i = 0; i < n * G; ++i)
    m[i] = -INFINITY, l[i] = 0;
  const int last = (sees(a, row0 + n - 1) - 1) / kAttnChunk;
  for (int c = first_chunk(a, row0); c <= last; ++c) {
    if (c < kept) {
      for (int i = 0; i < n * G; ++i) {
        if (c < first_chunk(a, row0 + i / G))
          continue; // behind this row's window: perhaps nobody computed it
        const float *in = partial(a, s.slot + row0 - s.first + i / G, c, head);
        const int g = i % G;
        s_.kernels->attn_merge(m + i, l + i, o + i * hp, in + g, in + G + g, in + 2 * G + g * hp,
                               a.head_dim);
      }
      continue;
    }
    chunk(a, thread, rows, n, head, c);
    const float *m2 = t.m2.as<float>(), *l2 = t.l2.as<float>(), *o2 = t.o2.as<float>();
    for (int i = 0; i < n * G; ++i)
      s_.kernels->attn_merge(m + i, l + i, o + i * hp, m2 + i, l2 + i, o2 + i * hp, a.head_dim);
  }
  if (a.bias >= 0) { // a sink is one more position, with a score of its own and no value
    const float *sinks = s_.vectors[static_cast<size_t>(a.bias)].data() + head * G;
    float *none = t.o2.as<float>();
    std::fill_n(none, hp, 0.0f);
    const float one = 1;
    for (int i = 0; i < n * G; ++i)
      s_.kernels->attn_merge(m + i, l + i, o + i * hp, sinks + i % G, &one, none, a.head_dim);
  }
  for (int i = 0; i < n * G; ++i)
    s_.kernels->attn_finish(l + i, o + i * hp, a.head_dim,
                            s_.row(a.dst, row0 + i / G) +
                                static_cast<size_t>((head * G + i % G) * a.head_dim));
}

void Executor::attention_phase(const Phase &p, int thread, Claims *c) {
  const Op &a = p.attention;
  const int heads = a.kv_heads, G = a.heads / heads, T = b_->T;
  const bool apart = split_ || !groups_.empty(); // some chunks have tasks of their own
  auto prepare = [&](int row, int head) {
    for (const Op &o : p.ops)
      o.dst == a.src ? row_op(o, thread, row, head * G, G) : row_op(o, thread, row, head, 1);
    store_head(a, row, head);
  };
  if (static_cast<int>(spans_.size()) == T && p.per_head && !apart) {
    for (int i; (i = c[0].claim(1)) < T * heads;) {
      prepare(i / heads, i % heads);
      attend(a, thread, spans_[static_cast<size_t>(i / heads)], i / heads, 1, i % heads, 0);
    }
    return;
  }
  if (p.per_head) {
    for (int i; (i = c[0].claim(1)) < T * heads;)
      prepare(i / heads, i % heads);
  } else {
    for (int r; (r = c[0].claim(1)) < T;) {
      for (const Op &o : p.ops)
        row_op(o, thread, r, 0, o.heads);
      for (int h = 0; h < heads; ++h)
        store_head(a, r, h);
    }
  }
  pool_.barrier();
  if (apart) {
    shared_chunks(a, thread, c[1]);
    if (split_) { // few long sequences: their chunks in parallel
      const int most = partial_chunks_;
      for (int i; (i = c[2].claim(1)) < T * heads * most;) {
        const int k = i % most, h = i / most % heads, r = i / most / heads;
        const Span &s = spans_[static_cast<size_t>(r)];
        if (k < s.shared || k < first_chunk(a, r) || k > b_->positions[r] / kAttnChunk)
          continue;
        chunk(a, thread, &r, 1, h, k);
        keep_partial(a, thread, s.slot, 0, k, h);
      }
    }
    pool_.barrier();
  }
  // Blocks of rows of one sequence, the heads of a group folded into them.
  const int block = std::max(1, kQueries / G);
  int total = 0;
  for (const Span &s : spans_)
    total += (s.count + block - 1) / block;
  for (int i; (i = c[3].claim(1)) < total * heads;) {
    int b = i / heads;
    const Span *s = spans_.data();
    for (int n; b >= (n = (s->count + block - 1) / block); ++s)
      b -= n;
    const int row0 = s->first + b * block, n = std::min(block, s->count - b * block);
    attend(a, thread, *s, row0, n, i % heads, split_ ? partial_chunks_ : s->shared);
  }
}

} // namespace insula
