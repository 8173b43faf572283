// A mixture of experts: each row chooses some, and the rows that chose one are multiplied together.
//
// A row's choice and each of its products depend on that row alone (the products are those of
// table.h's contract), and they are added in the order of the row's scores. So nothing depends on
// which other rows chose the same expert.
#include <algorithm>
#include <cmath>

#include "scratch.h"

namespace insula {

void Executor::Mixture::fit(int rows, int used, int experts, size_t ff, size_t width, size_t k) {
  const size_t pairs = static_cast<size_t>(rows) * static_cast<size_t>(used);
  // Each expert's last tile may have places to spare.
  const size_t most = std::min(static_cast<size_t>(experts), pairs);
  const size_t places = pairs + most * (kWideRows - 1);
  chosen.resize(std::max(chosen.size(), pairs));
  weights.resize(chosen.size()), place.resize(chosen.size());
  pair.resize(std::max(pair.size(), places));
  counts.resize(std::max(counts.size(), static_cast<size_t>(experts)));
  if (places > inputs_)
    inputs = std::make_unique<Inputs>(places, k), inputs_ = places;
  if (places * ff * 4 > gated.size())
    gated = Buffer(places * ff * 4);
  if (places * width * 4 > products.size())
    products = Buffer(places * width * 4);
}

// The `used` largest scores of a row, the lower expert first among equals, and their softmax.
void Executor::choose(const Op &e, int row) {
  const float *score = s_.row(e.k, row);
  const size_t at = static_cast<size_t>(row) * static_cast<size_t>(e.used);
  int *chosen = mixture_->chosen.data() + at;
  float *weight = mixture_->weights.data() + at;
  int n = 0;
  for (int x = 0; x < e.experts; ++x) {
    int i = n;
    for (; i > 0 && score[x] > score[chosen[i - 1]]; --i)
      if (i < e.used)
        chosen[i] = chosen[i - 1];
    if (i < e.used)
      chosen[i] = x;
    n = std::min(n + 1, e.used);
  }
  const double top = score[chosen[0]];
  double sum = 0;
  if (e.among_used)
    for (int i = 0; i < n; ++i)
      sum += std::exp(score[chosen[i]] - top);
  else
    for (int x = 0; x < e.experts; ++x)
      sum += std::exp(score[x] - top);
  for (int i = 0; i < n; ++i)
    weight[i] = static_cast<float>(std::exp(score[chosen[i]] - top) / sum) * e.scale;
}

// Places for the pairs of all rows, expert by expert.
void Executor::group(const Op &e) {
  Mixture &m = *mixture_;
  const int pairs = b_->T * e.used;
  std::fill_n(m.counts.begin(), e.experts, 0);
  for (int i = 0; i < pairs; ++i)
    ++m.counts[static_cast<size_t>(m.chosen[static_cast<size_t>(i)])];
  m.groups.clear();
  int at = 0;
  for (int x = 0; x < e.experts; ++x) {
    int &count = m.counts[static_cast<size_t>(x)];
    if (!count)
      continue;
    const int R = tile_rows(*s_.kernels, count);
    m.groups.push_back({x, at, count});
    const int room = (count + R - 1) / R * R;
    std::fill_n(m.pair.begin() + at, room, -1);
    count = at, at += room;
  }
  for (int i = 0; i < pairs; ++i) {
    int &next = m.counts[static_cast<size_t>(m.chosen[static_cast<size_t>(i)])];
    m.place[static_cast<size_t>(i)] = next;
    m.pair[static_cast<size_t>(next++)] = i;
  }
}

void Executor::experts_phase(const Phase &p, int thread, Claims *c) {
  const Op &e = p.experts;
  Mixture &m = *mixture_;
  const size_t in = static_cast<size_t>(s_.widths[static_cast<size_t>(e.src)]);
  const size_t out = static_cast<size_t>(s_.widths[static_cast<size_t>(e.dst)]);
  const size_t ff = s_.weights[static_cast<size_t>(e.down)].cols;
  for (int r; (r = c[0].claim(1)) < b_->T;)
    choose(e, r);
  pool_.barrier();
  if (thread == 0)
    group(e);
  pool_.barrier();

  // Rows of a group in the form that its products take.
  const int groups = static_cast<int>(m.groups.size());
  auto inputs_of = [&](const Mixture::Group &g) {
    return m.inputs->set(tile_rows(*s_.kernels, g.count), max_k_, static_cast<size_t>(g.first));
  };
  auto place_all = [&](Claims &claims, const Forms &forms, size_t k, auto row) {
    for (int i; (i = claims.claim(1)) < groups;) {
      const Mixture::Group &g = m.groups[static_cast<size_t>(i)];
      const ActSet set = inputs_of(g);
      for (int at = 0; at < g.count; ++at)
        place_row(forms, row(g.first + at), k, set, at);
    }
    pool_.barrier();
  };
  // Every group's product, in tasks of some panels of an expert.
  auto multiply = [&](Claims &claims, int columns, auto fill) {
    const int its = columns / kPanel;
    const int size = std::clamp(its * groups / (pool_.size() * 16), 1, 4);
    const int tasks = (its + size - 1) / size;
    for (int i; (i = claims.claim(1)) < tasks * groups;) {
      const Mixture::Group &g = m.groups[static_cast<size_t>(i / tasks)];
      const ActSet set = inputs_of(g);
      MatJob j{};
      j.acts = &set, j.rows = g.count, j.columns = columns;
      j.first_panel = i % tasks * size;
      j.panels = std::min(size, its - j.first_panel);
      j.scratch = scratch_[static_cast<size_t>(thread)]->wide.data();
      fill(j, g);
      s_.kernels->matmul(j);
    }
    pool_.barrier();
  };
  auto weight_of = [&](int weight, int expert, size_t columns, Layout &layout) {
    const Weight &w = s_.weights[static_cast<size_t>(weight)];
    layout = w.layout;
    return w.data +
           static_cast<size_t>(expert) * (columns / kPanel) * panel_bytes(w.layout, w.cols);
  };
  auto bias_of = [&](int bias, int expert, size_t columns) -> const float * {
    return bias < 0 ? nullptr
                    : s_.vectors[static_cast<size_t>(bias)].data() +
                          static_cast<size_t>(expert) * columns;
  };

  place_all(c[1], p.forms, in,
            [&](int place) { return s_.row(e.src, m.pair[static_cast<size_t>(place)] / e.used); });
  multiply(c[2], static_cast<int>(ff), [&](MatJob &j, const Mixture::Group &g) {
    j.w = weight_of(e.weight, g.expert, ff, j.layout);
    j.w2 = weight_of(e.up, g.expert, ff, j.layout2);
    j.bias = bias_of(e.bias, g.expert, ff), j.bias2 = bias_of(e.up_bias, g.expert, ff);
    j.K = in, j.act = e.act;
    j.dst = m.gated.as<float>() + static_cast<size_t>(g.first) * ff, j.dst_stride = ff;
  });
  place_all(c[3], p.down_forms, ff,
            [&](int place) { return m.gated.as<float>() + static_cast<size_t>(place) * ff; });
  multiply(c[4], static_cast<int>(out), [&](MatJob &j, const Mixture::Group &g) {
    j.w = weight_of(e.down, g.expert, out, j.layout);
    j.bias = bias_of(e.down_bias, g.expert, out);
    j.K = ff;
    j.dst = m.products.as<float>() + static_cast<size_t>(g.first) * out, j.dst_stride = out;
  });
  for (int r; (r = c[5].claim(1)) < b_->T;) {
    float *y = s_.row(e.dst, r);
    std::fill_n(y, out, 0.0f);
    for (int i = r * e.used; i < (r + 1) * e.used; ++i) {
      const float w = m.weights[static_cast<size_t>(i)];
      const float *x =
          m.products.as<float>() + static_cast<size_t>(m.place[static_cast<size_t>(i)]) * out;
      for (size_t n = 0; n < out; ++n)
        y[n] += w * x[n];
    }
  }
}

} // namespace insula
