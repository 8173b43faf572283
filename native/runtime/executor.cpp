#include "executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace insula {
namespace {

constexpr int kPrivateRows = 2; // up to here each thread prepares a product's input by itself
constexpr int kQueries = 32;    // query vectors of one attention task
constexpr int kClaimsPerPhase = 4;
constexpr int kAheadRows = 8; // up to here a step waits for memory, not for cores:
constexpr size_t kAheadBytes = size_t{1} << 17; // who waits at a barrier reads the next weights

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// One set of activation buffers: room for `rows` rows of up to k values, whatever the tile.
struct ActBuffers {
  Buffer q32, q256, d32, d256, s32, s256, f;
  ActSet set(int R, size_t k) const {
    const size_t r = static_cast<size_t>(R);
    ActSet a{};
    a.a32 = {q32.as<uint32_t>(), d32.as<float>(), s32.as<uint32_t>(), nullptr,
             k / 4 * r,          k / 32 * r,      k / 32 * r,         0};
    a.a256 = {q256.as<uint32_t>(), d256.as<float>(), s256.as<uint32_t>(),    nullptr,
              k / 4 * r,           k / 256 * r,      k / 256 * kSums256 * r, 0};
    a.f32 = {nullptr, nullptr, nullptr, f.as<float>(), 0, 0, 0, k * r};
    a.R = R;
    return a;
  }
};

} // namespace

struct Executor::Inputs : ActBuffers {
  Inputs(size_t rows, size_t k) {
    q32 = Buffer(rows * k), q256 = Buffer(rows * k), f = Buffer(rows * k * 4);
    d32 = Buffer(rows * k / 32 * 4), d256 = Buffer(rows * k / 256 * 4);
    s32 = Buffer(rows * k / 32 * 4), s256 = Buffer(rows * k / 256 * kSums256 * 4);
  }
};

struct Executor::Scratch {
  Inputs inputs;
  Buffer norm, scores, m, l, o, m2, l2, o2, wide;
  Scratch(size_t rows, size_t k) : inputs(rows, k) {}
};

Executor::Executor(State &state, ThreadPool &pool) : s_(state), pool_(pool) {
  size_t hp = 16;
  for (const Weight &w : s_.weights)
    max_k_ = std::max(max_k_, w.cols);
  max_k_ = up(max_k_, 256);
  for (const Slot &s : s_.slots)
    hp = std::max(hp, static_cast<size_t>(pad16(s.head_dim)));
  const size_t k = max_k_, tile = static_cast<size_t>(tile_rows(*s_.kernels, s_.max_rows));
  shared_ = std::make_unique<Inputs>(up(static_cast<size_t>(s_.max_rows), tile), k);
  for (int t = 0; t < pool_.size(); ++t) {
    auto c = std::make_unique<Scratch>(up(kPrivateRows, tile), k);
    if (s_.kernels->wide_from)
      c->wide = Buffer(wide_scratch(s_.max_rows, k));
    c->norm = Buffer(k * 4);
    c->scores = Buffer(kQueries * kAttnChunk * 4);
    c->m = Buffer(kQueries * 4), c->l = Buffer(kQueries * 4), c->o = Buffer(kQueries * hp * 4);
    c->m2 = Buffer(kQueries * 4), c->l2 = Buffer(kQueries * 4), c->o2 = Buffer(kQueries * hp * 4);
    scratch_.push_back(std::move(c));
  }
  claims_ = std::vector<Claims>(s_.phases.size() * kClaimsPerPhase + 1);
  for (const Phase &p : s_.phases)
    panels_.emplace_back(pool_.size(), p.panels);
}

Executor::~Executor() = default;

void Executor::step(const Batch &batch, float *logits) {
  b_ = &batch;
  logits_ = logits;
  spans_.clear();
  longest_ = 0;
  for (int t = 0; t < batch.T; ++t) {
    if (!spans_.empty() && batch.rows[t] == spans_.back().table)
      ++spans_.back().count;
    else
      spans_.push_back({t, 1, batch.rows[t]});
    longest_ = std::max(longest_, batch.positions[t] + 1);
  }
  alone_ = static_cast<int>(spans_.size()) == batch.T;
  for (Claims &c : claims_)
    c.next.store(0, std::memory_order_relaxed);
  for (Shares &p : panels_)
    p.reset();
  if (alone_) {
    size_t most = 0;
    for (const Phase &p : s_.phases)
      if (p.kind == Phase::Attention) {
        const size_t hp = static_cast<size_t>(pad16(p.attention.head_dim));
        most = std::max(most, static_cast<size_t>(p.attention.heads) * (hp + 2));
      }
    const size_t chunks = static_cast<size_t>((longest_ + kAttnChunk - 1) / kAttnChunk);
    const size_t need = static_cast<size_t>(batch.T) * chunks * most;
    if (chunks > 1 && partial_.size() < need)
      partial_.resize(need);
  }
  const std::function<void(int)> fn = [this](int thread) { run(thread); };
  pool_.run(fn);
}

void Executor::run(int thread) {
  {
    Claims &c = claims_.back();
    for (int r; (r = c.claim(1)) < b_->T;)
      rope_tables(r);
  }
  pool_.barrier();
  for (size_t i = 0; i < s_.phases.size(); ++i) {
    const Phase &p = s_.phases[i];
    Claims *c = &claims_[i * kClaimsPerPhase];
    if (p.kind == Phase::Rows)
      rows_phase(p, c[0]);
    else if (p.kind == Phase::Matmul)
      matmul_phase(p, thread, c, panels_[i]);
    else
      attention_phase(p, thread, c);
    const uint8_t *ahead = b_->T <= kAheadRows ? next_weights(i + 1, thread) : nullptr;
    pool_.barrier(ahead, ahead ? kAheadBytes : 0);
  }
}

// What this thread reads first in the next product, wherever it comes.
const uint8_t *Executor::next_weights(size_t phase, int thread) const {
  while (phase < s_.phases.size() && s_.phases[phase].kind != Phase::Matmul)
    ++phase;
  if (phase == s_.phases.size())
    return nullptr;
  const Phase &p = s_.phases[phase];
  int at = panels_[phase].first(thread);
  for (const Op &o : p.mats) {
    const Weight &w = s_.weights[static_cast<size_t>(o.weight)];
    const int panels = (w.rows + kPanel - 1) / kPanel;
    const size_t offset = static_cast<size_t>(at) * panel_bytes(w.layout, w.cols);
    if (at < panels)
      return w.bytes - offset > kAheadBytes ? w.data + offset : nullptr;
    at -= panels;
  }
  return nullptr;
}

// cos and sin of position * frequency in double, rounded once: the same on every level.
void Executor::rope_tables(int row) {
  for (size_t f = 0; f < s_.freqs.size(); ++f) {
    const std::vector<double> &w = s_.freqs[f];
    float *t = s_.rope[f].as<float>() + static_cast<size_t>(row) * w.size() * 2;
    for (size_t i = 0; i < w.size(); ++i) {
      const double a = w[i] * static_cast<double>(b_->positions[row]);
      t[2 * i] = static_cast<float>(std::cos(a));
      t[2 * i + 1] = static_cast<float>(std::sin(a));
    }
  }
}

void Executor::row_op(const Op &o, int row, int head0, int heads) {
  const KernelTable &k = *s_.kernels;
  switch (o.kind) {
  case OpKind::Embed: {
    const Weight &w = s_.weights[static_cast<size_t>(o.weight)];
    const int id = b_->tokens[row];
    float *y = s_.row(o.dst, row);
    unpack_row(w.layout, w.data + static_cast<size_t>(id / kPanel) * panel_bytes(w.layout, w.cols),
               id % kPanel, w.cols, y);
    if (o.scale != 1.0f)
      for (size_t i = 0; i < w.cols; ++i)
        y[i] *= o.scale;
    break;
  }
  case OpKind::Norm: {
    const size_t n = static_cast<size_t>(s_.widths[static_cast<size_t>(o.src)] / o.heads);
    const float *w = s_.vectors[static_cast<size_t>(o.weight)].data();
    const float *b = o.bias < 0 ? nullptr : s_.vectors[static_cast<size_t>(o.bias)].data();
    for (int h = head0; h < head0 + heads; ++h) {
      const float *x = s_.row(o.src, row) + static_cast<size_t>(h) * n;
      float *y = s_.row(o.dst, row) + static_cast<size_t>(h) * n;
      if (o.layer_norm)
        k.layer_norm(x, w, b, n, o.eps, y);
      else
        k.rms_norm(x, w, n, o.eps, y);
    }
    break;
  }
  case OpKind::Rope: {
    const size_t f = static_cast<size_t>(o.freqs), P = s_.freqs[f].size();
    const float *t = s_.rope[f].as<float>() + static_cast<size_t>(row) * P * 2;
    const size_t hd = static_cast<size_t>(o.head_dim);
    for (int h = head0; h < head0 + heads; ++h) {
      float *x = s_.row(o.dst, row) + static_cast<size_t>(h) * hd;
      for (size_t i = 0; i < P; ++i) {
        const float c = t[2 * i] * o.mscale, s = t[2 * i + 1] * o.mscale;
        float &a = o.neox ? x[i] : x[2 * i];
        float &b = o.neox ? x[i + P] : x[2 * i + 1];
        const float u = a * c - b * s, v = a * s + b * c;
        a = u, b = v;
      }
    }
    break;
  }
  case OpKind::Glu:
    k.glu(s_.row(o.src, row), s_.row(o.k, row),
          static_cast<size_t>(s_.widths[static_cast<size_t>(o.dst)]), o.act, s_.row(o.dst, row));
    break;
  case OpKind::Add: {
    const int n = s_.widths[static_cast<size_t>(o.dst)];
    float *y = s_.row(o.dst, row);
    const float *x = s_.row(o.src, row);
    for (int i = 0; i < n; ++i)
      y[i] += x[i];
    break;
  }
  case OpKind::Scale: {
    const int n = s_.widths[static_cast<size_t>(o.dst)] / o.heads;
    float *y = s_.row(o.dst, row);
    for (int i = head0 * n; i < (head0 + heads) * n; ++i)
      y[i] *= o.scale;
    break;
  }
  default:
    break;
  }
}

void Executor::rows_phase(const Phase &p, Claims &c) {
  for (int r; (r = c.claim(1)) < b_->T;)
    for (const Op &o : p.ops)
      row_op(o, r, 0, o.heads);
}

// Row x into place `at` of the input's tiles, in every form that this phase's weights need.
void Executor::place_row(const Phase &p, const float *x, const ActSet &set, int at) {
  const size_t k = static_cast<size_t>(s_.widths[static_cast<size_t>(p.mats[0].src)]);
  const size_t t = static_cast<size_t>(at / set.R);
  auto words = [&](const uint32_t *q, size_t tile) { return const_cast<uint32_t *>(q) + t * tile; };
  auto floats = [&](const float *d, size_t tile) { return const_cast<float *>(d) + t * tile; };
  const Acts &a = set.a32, &b = set.a256, &f = set.f32;
  const int row = at % set.R;
  if (p.a32)
    s_.kernels->quantize_a32(x, k, set.R, row, words(a.q, a.q_tile), floats(a.d, a.d_tile),
                             words(a.sums, a.sums_tile));
  if (p.a256)
    s_.kernels->quantize_a256(x, k, set.R, row, words(b.q, b.q_tile), floats(b.d, b.d_tile),
                              words(b.sums, b.sums_tile));
  if (p.f32) {
    float *y = floats(f.f, f.f_tile) + row;
    for (size_t i = 0; i < k; ++i)
      y[i * static_cast<size_t>(set.R)] = x[i];
  }
}

void Executor::matmul_phase(const Phase &p, int thread, Claims *c, Shares &panels) {
  const int M = p.logits ? b_->R : b_->T;
  if (M == 0)
    return;
  const int src = p.mats[0].src;
  const size_t k = static_cast<size_t>(s_.widths[static_cast<size_t>(src)]);
  auto source_row = [&](int i) { return p.logits ? b_->logit_rows[i] : i; };
  auto normed = [&](int r, float *y) {
    const Op &o = p.norm_op;
    const float *w = s_.vectors[static_cast<size_t>(o.weight)].data();
    const float *x = s_.row(o.src, r);
    if (o.layer_norm)
      s_.kernels->layer_norm(
          x, w, o.bias < 0 ? nullptr : s_.vectors[static_cast<size_t>(o.bias)].data(), k, o.eps, y);
    else
      s_.kernels->rms_norm(x, w, k, o.eps, y);
  };

  // Few rows: each thread prepares all of them for itself, which is cheaper than a barrier.
  const bool own = M <= kPrivateRows && p.private_ok;
  Scratch &mine = *scratch_[static_cast<size_t>(thread)];
  const ActSet set = (own ? mine.inputs : *shared_).set(tile_rows(*s_.kernels, M), max_k_);
  for (int i = 0; own ? i < M : (i = c[0].claim(1)) < M; i += own) {
    const int r = source_row(i);
    const float *x = s_.row(src, r);
    if (p.norm >= 0) {
      float *y = p.keep_norm ? s_.row(p.norm_op.dst, r) : mine.norm.as<float>();
      normed(r, y);
      x = y;
    }
    place_row(p, x, set, i);
  }
  if (!own)
    pool_.barrier();

  MatJob j{};
  j.K = k;
  j.acts = &set;
  j.rows = M;
  j.add = p.add;
  j.scratch = mine.wide.data();
  const int size = std::clamp(p.panels / (pool_.size() * 16), 1, 4);
  for (Shares::Run run; (run = panels.take(thread, size)).count > 0;) {
    int left = run.count, at = run.first;
    for (size_t m = 0; m < p.mats.size() && left > 0; ++m) {
      const Op &o = p.mats[m];
      const Weight &w = s_.weights[static_cast<size_t>(o.weight)];
      const int its = (w.rows + kPanel - 1) / kPanel;
      if (at >= its) {
        at -= its;
        continue;
      }
      j.layout = w.layout, j.w = w.data, j.columns = w.rows;
      j.first_panel = at;
      j.panels = std::min(left, its - at);
      j.bias = o.bias < 0 ? nullptr : s_.vectors[static_cast<size_t>(o.bias)].data();
      int dst = o.dst;
      if (p.glu) {
        const Op &u = p.mats[1];
        const Weight &w2 = s_.weights[static_cast<size_t>(u.weight)];
        j.layout2 = w2.layout, j.w2 = w2.data, j.act = p.glu_op.act;
        j.bias2 = u.bias < 0 ? nullptr : s_.vectors[static_cast<size_t>(u.bias)].data();
        dst = p.glu_op.dst;
      } else if (p.add) {
        dst = p.add_to;
      }
      if (p.logits) {
        j.dst = logits_, j.dst_stride = static_cast<size_t>(s_.n_vocab);
      } else {
        j.dst = s_.row(dst, 0), j.dst_stride = s_.strides[static_cast<size_t>(dst)];
      }
      s_.kernels->matmul(j);
      left -= j.panels;
      at = 0;
      if (p.glu)
        break;
    }
  }

  if (p.logits && (p.mats[0].scale != 1.0f || p.mats[0].softcap > 0.0f)) {
    pool_.barrier();
    for (int i; (i = c[1].claim(1)) < M;) {
      float *y = logits_ + static_cast<size_t>(i) * static_cast<size_t>(s_.n_vocab);
      if (p.mats[0].scale != 1.0f)
        for (int n = 0; n < s_.n_vocab; ++n)
          y[n] *= p.mats[0].scale;
      if (p.mats[0].softcap > 0.0f)
        s_.kernels->softcap(y, static_cast<size_t>(s_.n_vocab), p.mats[0].softcap);
    }
  }
}

void Executor::store_head(const Op &a, int row, int head) {
  const int pos = b_->positions[row];
  const int page = b_->tables[static_cast<size_t>(b_->rows[row])][pos / kPageTokens];
  const size_t at = static_cast<size_t>(head * a.head_dim);
  s_.kernels->store_kv(s_.row(a.k, row) + at, s_.row(a.v, row) + at, a.head_dim, pos % kPageTokens,
                       s_.kv_f32, s_.page(a.slot, page, head));
}

// Rows row0.. of one sequence against chunks [chunk0, chunk1) of one KV head. partial: the state
// of each chunk goes to partial_ instead of being merged.
void Executor::attend(const Op &a, int thread, int row0, int rows, int head, int chunk0, int chunk1,
                      bool partial) {
  Scratch &t = *scratch_[static_cast<size_t>(thread)];
  const int G = a.heads / a.kv_heads, n = rows * G, hp = pad16(a.head_dim);
  const float *q[kQueries];
  int lo[kQueries], hi[kQueries], last = 0, first = 1 << 30;
  for (int r = 0; r < rows; ++r) {
    const int pos = b_->positions[row0 + r];
    last = std::max(last, pos);
    first = std::min(first, a.window ? std::max(0, pos - a.window + 1) : 0);
    for (int g = 0; g < G; ++g)
      q[r * G + g] = s_.row(a.src, row0 + r) + static_cast<size_t>((head * G + g) * a.head_dim);
  }
  const int32_t *table = b_->tables[static_cast<size_t>(b_->rows[row0])];
  float *m = t.m.as<float>(), *l = t.l.as<float>(), *o = t.o.as<float>();
  if (!partial)
    for (int i = 0; i < n; ++i)
      m[i] = -INFINITY, l[i] = 0;
  chunk0 = std::max(chunk0, first / kAttnChunk);
  chunk1 = std::min(chunk1, last / kAttnChunk + 1);
  for (int c = chunk0; c < chunk1; ++c) {
    const int base = c * kAttnChunk, len = std::min(kAttnChunk, last + 1 - base);
    const uint8_t *pages[kAttnChunk / kPageTokens];
    for (int i = 0; i * kPageTokens < len; ++i)
      pages[i] = s_.page(a.slot, table[base / kPageTokens + i], head);
    for (int r = 0; r < rows; ++r) {
      const int pos = b_->positions[row0 + r], from = a.window ? pos - a.window + 1 : 0;
      for (int g = 0; g < G; ++g) {
        lo[r * G + g] = std::clamp(from - base, 0, len);
        hi[r * G + g] = std::clamp(pos + 1 - base, 0, len);
      }
    }
    AttnChunk k{q,
                n,
                a.head_dim,
                pages,
                len,
                lo,
                hi,
                a.scale,
                a.softcap,
                s_.kv_f32,
                t.scores.as<float>(),
                t.m2.as<float>(),
                t.l2.as<float>(),
                t.o2.as<float>()};
    if (partial) {
      const size_t chunks = static_cast<size_t>((longest_ + kAttnChunk - 1) / kAttnChunk);
      float *out =
          partial_.data() + ((static_cast<size_t>(row0) * chunks + static_cast<size_t>(c)) *
                                 static_cast<size_t>(a.heads) +
                             static_cast<size_t>(head * G)) *
                                static_cast<size_t>(hp + 2);
      k.m = out, k.l = out + G, k.o = out + 2 * G;
      s_.kernels->attention(k);
      continue;
    }
    s_.kernels->attention(k);
    for (int i = 0; i < n; ++i)
      s_.kernels->attn_merge(m + i, l + i, o + i * hp, k.m + i, k.l + i, k.o + i * hp, a.head_dim);
  }
  if (partial)
    return;
  for (int r = 0; r < rows; ++r)
    for (int g = 0; g < G; ++g)
      s_.kernels->attn_finish(l + r * G + g, o + (r * G + g) * hp, a.head_dim,
                              s_.row(a.dst, row0 + r) +
                                  static_cast<size_t>((head * G + g) * a.head_dim));
}

void Executor::attention_phase(const Phase &p, int thread, Claims *c) {
  const Op &a = p.attention;
  const int heads = a.kv_heads, G = a.heads / heads, T = b_->T;
  auto prepare = [&](int row, int head) {
    for (const Op &o : p.ops)
      o.dst == a.src ? row_op(o, row, head * G, G) : row_op(o, row, head, 1);
    store_head(a, row, head);
  };
  const int most = (longest_ + kAttnChunk - 1) / kAttnChunk;
  const bool split = alone_ && most > 1 && T * heads < 8 * pool_.size();
  if (alone_ && p.per_head && !split) {
    for (int i; (i = c[0].claim(1)) < T * heads;) {
      prepare(i / heads, i % heads);
      attend(a, thread, i / heads, 1, i % heads, 0, most, false);
    }
    return;
  }
  if (p.per_head) {
    for (int i; (i = c[0].claim(1)) < T * heads;)
      prepare(i / heads, i % heads);
  } else {
    for (int r; (r = c[0].claim(1)) < T;) {
      for (const Op &o : p.ops)
        row_op(o, r, 0, o.heads);
      for (int h = 0; h < heads; ++h)
        store_head(a, r, h);
    }
  }
  pool_.barrier();
  if (split) { // one long sequence: its chunks in parallel, then merged in order
    for (int i; (i = c[1].claim(1)) < T * heads * most;) {
      const int chunk = i % most, h = i / most % heads, r = i / most / heads;
      attend(a, thread, r, 1, h, chunk, chunk + 1, true);
    }
    pool_.barrier();
    const int hp = pad16(a.head_dim);
    Scratch &t = *scratch_[static_cast<size_t>(thread)];
    for (int i; (i = c[2].claim(1)) < T * heads;) {
      const int r = i / heads, h = i % heads, pos = b_->positions[r];
      const int from = a.window ? std::max(0, pos - a.window + 1) / kAttnChunk : 0;
      float *m = t.m.as<float>(), *l = t.l.as<float>(), *o = t.o.as<float>();
      for (int g = 0; g < G; ++g) {
        m[g] = -INFINITY, l[g] = 0;
        for (int k = from; k <= pos / kAttnChunk; ++k) {
          const float *in =
              partial_.data() +
              ((static_cast<size_t>(r) * static_cast<size_t>(most) + static_cast<size_t>(k)) *
                   static_cast<size_t>(a.heads) +
               static_cast<size_t>(h * G)) *
                  static_cast<size_t>(hp + 2);
          s_.kernels->attn_merge(m + g, l + g, o + g * hp, in + g, in + G + g, in + 2 * G + g * hp,
                                 a.head_dim);
        }
        s_.kernels->attn_finish(l + g, o + g * hp, a.head_dim,
                                s_.row(a.dst, r) + static_cast<size_t>((h * G + g) * a.head_dim));
      }
    }
    return;
  }
  // Blocks of rows of one sequence, the heads of a group folded into them.
  const int block = std::max(1, kQueries / G);
  int total = 0;
  for (const Span &s : spans_)
    total += (s.count + block - 1) / block;
  for (int i; (i = c[1].claim(1)) < total * heads;) {
    int b = i / heads, head = i % heads;
    for (const Span &s : spans_) {
      const int blocks = (s.count + block - 1) / block;
      if (b >= blocks) {
        b -= blocks;
        continue;
      }
      const int r0 = s.first + b * block, n = std::min(block, s.count - b * block);
      attend(a, thread, r0, n, head, 0, most, false);
      break;
    }
  }
}

} // namespace insula
