#include "scratch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace insula {
namespace {

constexpr int kPrivateRows = 2; // up to here each thread prepares a product's input by itself
constexpr int kClaimsPerPhase = 6;
constexpr int kAheadRows = 8; // up to here a step waits for memory, not for cores:
constexpr size_t kAheadBytes = size_t{1} << 17; // who waits at a barrier reads the next weights

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

} // namespace

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
    c->scores = Buffer(kMostQueries * kAttnChunk * 4);
    for (Buffer *b : {&c->m, &c->l, &c->m2, &c->l2})
      *b = Buffer(kMostQueries * 4);
    c->o = Buffer(kMostQueries * hp * 4), c->o2 = Buffer(kMostQueries * hp * 4);
    scratch_.push_back(std::move(c));
  }
  for (const Phase &p : s_.phases)
    if (p.kind == Phase::Experts) {
      if (!mixture_)
        mixture_ = std::make_unique<Mixture>();
      const Op &e = p.experts;
      const size_t ff = s_.weights[static_cast<size_t>(e.down)].cols;
      mixture_->fit(s_.max_rows, e.used, e.experts, ff,
                    static_cast<size_t>(s_.widths[static_cast<size_t>(e.dst)]), k);
    }
  claims_ = std::vector<Claims>(s_.phases.size() * kClaimsPerPhase + 1);
  for (const Phase &p : s_.phases)
    panels_.emplace_back(pool_.size(), p.panels);
}

Executor::~Executor() = default;

void Executor::record(bool on) {
  recorder_ = on ? std::make_unique<Recorder>(s_.phases, s_.weights, s_.max_rows) : nullptr;
}

void Executor::step(const Batch &batch, float *out) {
  b_ = &batch;
  out_ = out;
  spans_.clear();
  longest_ = 0;
  for (int t = 0; t < batch.T; ++t) {
    if (!spans_.empty() && batch.rows[t] == spans_.back().table)
      ++spans_.back().count;
    else
      spans_.push_back({t, 1, batch.rows[t]});
    longest_ = std::max(longest_, batch.positions[t] + 1);
  }
  ends_.resize(static_cast<size_t>(batch.T));
  for (const Span &s : spans_)
    std::fill_n(ends_.begin() + s.first, s.count, batch.positions[s.first + s.count - 1] + 1);
  for (Claims &c : claims_)
    c.next.store(0, std::memory_order_relaxed);
  for (Shares &p : panels_)
    p.reset();
  plan_attention();
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
      rows_phase(p, thread, c[0]);
    else if (p.kind == Phase::Matmul)
      matmul_phase(p, thread, c, panels_[i]);
    else if (p.kind == Phase::Experts)
      experts_phase(p, thread, c);
    else if (p.kind == Phase::Output)
      output_phase(p, c[0]);
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

void Executor::row_op(const Op &o, int thread, int row, int head0, int heads) {
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
  case OpKind::Positions:
  case OpKind::TokenTypes: {
    const Weight &w = s_.weights[static_cast<size_t>(o.weight)];
    const int at = o.kind == OpKind::Positions ? b_->positions[row]
                   : b_->types                 ? b_->types[row]
                                               : 0;
    float *x = scratch_[static_cast<size_t>(thread)]->norm.as<float>(), *y = s_.row(o.dst, row);
    unpack_row(w.layout, w.data + static_cast<size_t>(at / kPanel) * panel_bytes(w.layout, w.cols),
               at % kPanel, w.cols, x);
    for (size_t i = 0; i < w.cols; ++i)
      y[i] += x[i];
    break;
  }
  case OpKind::Norm: {
    const size_t n = static_cast<size_t>(s_.widths[static_cast<size_t>(o.src)] / o.heads);
    const std::vector<float> &weight = s_.vectors[static_cast<size_t>(o.weight)];
    const size_t own = weight.size() == n ? 0 : n; // from one part's weights to the next one's
    const float *w = weight.data() + static_cast<size_t>(head0) * own;
    const float *b = o.bias < 0 ? nullptr : s_.vectors[static_cast<size_t>(o.bias)].data();
    for (int h = head0; h < head0 + heads; ++h, w += own) {
      const float *x = s_.row(o.src, row) + static_cast<size_t>(h) * n;
      float *y = s_.row(o.dst, row) + static_cast<size_t>(h) * n;
      if (o.layer_norm)
        k.layer_norm(x, w, b, n, o.eps, y);
      else
        k.rms_norm(x, w, n, o.eps, y);
    }
    break;
  }
  case OpKind::Lora:
    lora(o, thread, row);
    break;
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
  case OpKind::Act:
    k.act(s_.row(o.src, row), static_cast<size_t>(s_.widths[static_cast<size_t>(o.dst)]), o.act,
          s_.row(o.dst, row));
    break;
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

// y += B (A x), in floats, by the kernels of float weights; a row alone is already in their form.
void Executor::lora(const Op &o, int thread, int row) {
  const int adapter = b_->adapters ? b_->adapters[b_->rows[row]] : -1;
  if (adapter < 0)
    return;
  const auto [down, up] = s_.loras[static_cast<size_t>(o.lora)][static_cast<size_t>(adapter)];
  if (down < 0)
    return;
  float *between = scratch_[static_cast<size_t>(thread)]->norm.as<float>();
  auto multiply = [&](int weight, const float *x, float *y, bool add) {
    const Weight &w = s_.weights[static_cast<size_t>(weight)];
    ActSet set{};
    set.R = 1, set.f32.f = x;
    MatJob j{};
    j.layout = w.layout, j.w = w.data, j.columns = w.rows, j.K = w.cols;
    j.panels = (w.rows + kPanel - 1) / kPanel;
    j.acts = &set, j.rows = 1, j.dst = y, j.add = add;
    s_.kernels->matmul(j);
  };
  multiply(down, s_.row(o.src, row), between, false);
  multiply(up, between, s_.row(o.dst, row), true);
}

void Executor::rows_phase(const Phase &p, int thread, Claims &c) {
  for (int r; (r = c.claim(1)) < b_->T;)
    for (const Op &o : p.ops)
      row_op(o, thread, r, 0, o.heads);
}

void Executor::output_phase(const Phase &p, Claims &c) {
  const size_t n = static_cast<size_t>(s_.n_out);
  for (int i; (i = c.claim(1)) < b_->R;)
    std::memcpy(out_ + static_cast<size_t>(i) * n, s_.row(p.ops[0].src, b_->logit_rows[i]), n * 4);
}

// Row x of k values into place `at` of the input's tiles, in every form that is needed.
void Executor::place_row(const Forms &forms, const float *x, size_t k, const ActSet &set, int at) {
  const size_t t = static_cast<size_t>(at / set.R);
  auto words = [&](const uint32_t *q, size_t tile) { return const_cast<uint32_t *>(q) + t * tile; };
  auto floats = [&](const float *d, size_t tile) { return const_cast<float *>(d) + t * tile; };
  const Acts &a = set.a32, &b = set.a256, &f = set.f32;
  const int row = at % set.R;
  if (forms.a32)
    s_.kernels->quantize_a32(x, k, set.R, row, words(a.q, a.q_tile), floats(a.d, a.d_tile),
                             words(a.sums, a.sums_tile));
  if (forms.a256)
    s_.kernels->quantize_a256(x, k, set.R, row, words(b.q, b.q_tile), floats(b.d, b.d_tile),
                              words(b.sums, b.sums_tile));
  if (forms.a16)
    s_.kernels->quantize_a16(x, k, set.R, row, words(set.a16.q, set.a16.q_tile),
                             floats(set.a16.d, set.a16.d_tile));
  if (forms.f32) {
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
  Recorder *recorder = p.logits ? nullptr : recorder_.get();
  const bool own = M <= kPrivateRows && p.private_ok && !recorder;
  Scratch &mine = *scratch_[static_cast<size_t>(thread)];
  const ActSet set = (own ? mine.inputs : *shared_).set(tile_rows(*s_.kernels, M), max_k_);
  auto prepare = [&](int i) {
    const int r = source_row(i);
    const float *x = s_.row(src, r);
    if (p.norm >= 0) {
      float *y = p.keep_norm ? s_.row(p.norm_op.dst, r) : mine.norm.as<float>();
      normed(r, y);
      x = y;
    }
    place_row(p.forms, x, k, set, i);
    if (recorder)
      recorder->keep(i, x, k);
  };
  // A tile's rows share cache lines, so where there are enough tiles one thread takes a whole one.
  const int together = M >= set.R * pool_.size() ? set.R : 1;
  for (int i = 0; own && i < M; ++i)
    prepare(i);
  for (int first; !own && (first = c[0].claim(together)) < M;)
    for (int i = first; i < std::min(first + together, M); ++i)
      prepare(i);
  if (!own)
    pool_.barrier();
  if (recorder)
    recorder->add(static_cast<size_t>(&p - s_.phases.data()), M, thread, pool_.size());

  MatJob j{};
  j.K = k;
  j.acts = &set;
  j.rows = M;
  j.add = p.add;
  j.then = p.then;
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
        j.dst = out_, j.dst_stride = static_cast<size_t>(s_.n_out);
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
      float *y = out_ + static_cast<size_t>(i) * static_cast<size_t>(s_.n_out);
      if (p.mats[0].scale != 1.0f)
        for (int n = 0; n < s_.n_out; ++n)
          y[n] *= p.mats[0].scale;
      if (p.mats[0].softcap > 0.0f)
        s_.kernels->softcap(y, static_cast<size_t>(s_.n_out), p.mats[0].softcap);
    }
  }
}

} // namespace insula
