#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace insula {

const char *op_name(OpKind k) {
  switch (k) {
  case OpKind::Embed:
    return "Embed";
  case OpKind::Positions:
    return "Positions";
  case OpKind::TokenTypes:
    return "TokenTypes";
  case OpKind::Norm:
    return "Norm";
  case OpKind::Linear:
    return "Linear";
  case OpKind::Lora:
    return "Lora";
  case OpKind::Rope:
    return "Rope";
  case OpKind::Attention:
    return "Attention";
  case OpKind::Act:
    return "Act";
  case OpKind::Glu:
    return "Glu";
  case OpKind::Experts:
    return "Experts";
  case OpKind::Add:
    return "Add";
  case OpKind::Scale:
    return "Scale";
  case OpKind::Logits:
    return "Logits";
  case OpKind::Output:
    return "Output";
  }
  return "?";
}

namespace {

constexpr int kMaxExperts = 1 << 12;

struct Checker {
  const std::vector<int> &widths;
  const std::vector<Slot> &slots;
  const std::vector<Weight> &weights;
  const std::vector<std::vector<float>> &vectors;
  const std::vector<std::vector<double>> &freqs;
  const std::vector<Lora> &loras;
  size_t at = 0;
  OpKind kind = OpKind::Embed;

  [[noreturn]] void fail(const std::string &what) const {
    throw std::invalid_argument("op " + std::to_string(at) + " (" + op_name(kind) + "): " + what);
  }
  void need(bool ok, const char *what) const {
    if (!ok)
      fail(what);
  }
  int width(int b) const {
    if (b < 0 || b >= static_cast<int>(widths.size()))
      fail("no such buffer");
    return widths[static_cast<size_t>(b)];
  }
  const Weight &weight(int i) const {
    if (i < 0 || i >= static_cast<int>(weights.size()))
      fail("no such weight");
    return weights[static_cast<size_t>(i)];
  }
  void vector(int i, int n, bool optional) const {
    if (i < 0 && optional)
      return;
    if (i < 0 || i >= static_cast<int>(vectors.size()))
      fail("no such vector");
    if (static_cast<int>(vectors[static_cast<size_t>(i)].size()) != n)
      fail("vector of " + std::to_string(vectors[static_cast<size_t>(i)].size()) + " where " +
           std::to_string(n) + " is needed");
  }

  void check_experts(const Op &o) {
    need(o.experts > 0 && o.experts <= kMaxExperts && width(o.k) == o.experts,
         "the scores do not fit the experts");
    need(o.used > 0 && o.used <= o.experts && o.used <= kMaxUsed, "wrong number of experts used");
    need(o.dst != o.src && o.dst != o.k, "dst is also an input");
    const Weight &gate = weight(o.weight), &up = weight(o.up), &down = weight(o.down);
    const int ff = gate.rows / o.experts, out = width(o.dst);
    need(static_cast<int>(gate.cols) == width(o.src) && up.cols == gate.cols &&
             gate.rows == ff * o.experts && up.rows == gate.rows,
         "gate and up have other shapes");
    need(static_cast<int>(down.cols) == ff && down.rows == out * o.experts,
         "down has another shape");
    need(ff % kPanel == 0 && out % kPanel == 0,
         "an expert's rows are not a multiple of 16 (its panels would be shared)");
    vector(o.bias, gate.rows, true), vector(o.up_bias, up.rows, true);
    vector(o.down_bias, down.rows, true);
  }

  // A norm's weight: one for each of its parts, or the same for all of them.
  void norm_weight(const Op &o) const {
    const int n = width(o.src);
    const bool whole = o.weight >= 0 && o.weight < static_cast<int>(vectors.size()) &&
                       static_cast<int>(vectors[static_cast<size_t>(o.weight)].size()) == n;
    vector(o.weight, whole ? n : n / o.heads, false);
  }

  void check(const Op &o, size_t index) {
    at = index, kind = o.kind;
    switch (o.kind) {
    case OpKind::Embed:
    case OpKind::Positions:
    case OpKind::TokenTypes:
      need(static_cast<int>(weight(o.weight).cols) == width(o.dst), "widths differ");
      break;
    case OpKind::Norm:
      need(width(o.dst) == width(o.src), "widths differ");
      need(o.heads > 0 && width(o.src) % o.heads == 0, "heads do not divide the width");
      norm_weight(o);
      vector(o.bias, width(o.src) / o.heads, true);
      break;
    case OpKind::Linear:
      need(o.dst != o.src, "dst and src are one buffer");
      need(static_cast<int>(weight(o.weight).cols) == width(o.src), "input width differs");
      need(weight(o.weight).rows == width(o.dst), "output width differs");
      vector(o.bias, width(o.dst), true);
      break;
    case OpKind::Lora:
      need(o.dst != o.src, "dst and src are one buffer");
      need(o.lora >= 0 && o.lora < static_cast<int>(loras.size()), "no such adapters");
      need(loras[static_cast<size_t>(o.lora)].size() == loras[0].size(), "an adapter is missing");
      for (const auto &[down, up] : loras[static_cast<size_t>(o.lora)]) {
        if (down < 0)
          continue;
        need(static_cast<int>(weight(down).cols) == width(o.src), "input width differs");
        need(weight(up).rows == width(o.dst), "output width differs");
        need(static_cast<int>(weight(up).cols) == weight(down).rows, "the ranks differ");
        need(info(weight(down).layout).act == ActForm::F32 &&
                 info(weight(up).layout).act == ActForm::F32,
             "an adapter's factors are not floats");
      }
      break;
    case OpKind::Rope:
      need(o.freqs >= 0 && o.freqs < static_cast<int>(freqs.size()), "no such frequencies");
      need(o.heads > 0 && o.heads * o.head_dim == width(o.dst), "heads do not fill the buffer");
      need(2 * static_cast<int>(freqs[static_cast<size_t>(o.freqs)].size()) <= o.head_dim,
           "more pairs than the head has");
      break;
    case OpKind::Attention: {
      need(o.slot >= 0 && o.slot < static_cast<int>(slots.size()), "no such slot");
      const Slot &s = slots[static_cast<size_t>(o.slot)];
      need(s.kv_heads == o.kv_heads && s.head_dim == o.head_dim, "the slot has another shape");
      need(o.kv_heads > 0 && o.heads % o.kv_heads == 0, "kv_heads do not divide heads");
      need(width(o.src) == o.heads * o.head_dim && width(o.dst) == width(o.src),
           "q and dst need heads * head_dim");
      need(width(o.k) == o.kv_heads * o.head_dim && width(o.v) == width(o.k),
           "k and v need kv_heads * head_dim");
      need(o.window >= 0, "negative window");
      vector(o.bias, o.heads, true);
      need(o.dst != o.k && o.dst != o.v, "dst is also k or v");
      break;
    }
    case OpKind::Glu:
      need(width(o.dst) == width(o.src) && width(o.dst) == width(o.k), "widths differ");
      break;
    case OpKind::Act:
    case OpKind::Add:
      need(width(o.dst) == width(o.src), "widths differ");
      break;
    case OpKind::Experts:
      check_experts(o);
      break;
    case OpKind::Scale:
      width(o.dst);
      break;
    case OpKind::Output:
      width(o.src);
      break;
    case OpKind::Logits:
      need(static_cast<int>(weight(o.weight).cols) == width(o.src), "input width differs");
      break;
    }
  }
};

bool reads(const Op &o, int b) {
  switch (o.kind) {
  case OpKind::Embed:
    return false;
  case OpKind::Norm:
  case OpKind::Linear:
  case OpKind::Act:
  case OpKind::Logits:
  case OpKind::Output:
    return o.src == b;
  case OpKind::Positions:
  case OpKind::TokenTypes:
  case OpKind::Rope:
  case OpKind::Scale:
    return o.dst == b;
  case OpKind::Attention:
    return o.src == b || o.k == b || o.v == b;
  case OpKind::Glu:
  case OpKind::Experts:
    return o.src == b || o.k == b;
  case OpKind::Lora:
  case OpKind::Add:
    return o.src == b || o.dst == b;
  }
  return true;
}
bool overwrites(const Op &o, int b) {
  return o.dst == b && o.kind != OpKind::Positions && o.kind != OpKind::TokenTypes &&
         o.kind != OpKind::Lora && o.kind != OpKind::Add && o.kind != OpKind::Rope &&
         o.kind != OpKind::Scale;
}

// Whether the value of `b` is never read from op `from` on.
bool dead(const std::vector<Op> &ops, size_t from, int b) {
  for (size_t i = from; i < ops.size(); ++i) {
    if (reads(ops[i], b))
      return false;
    if (overwrites(ops[i], b))
      return true;
  }
  return true;
}

bool row_wise(OpKind k) {
  return k != OpKind::Linear && k != OpKind::Attention && k != OpKind::Experts &&
         k != OpKind::Logits && k != OpKind::Output;
}

// Whether op i is a norm that belongs to the product after it.
bool feeds_product(const std::vector<Op> &ops, size_t i) {
  if (ops[i].kind != OpKind::Norm || ops[i].heads != 1 || i + 1 >= ops.size())
    return false;
  const Op &next = ops[i + 1];
  return next.src == ops[i].dst &&
         (next.kind == OpKind::Linear || (next.kind == OpKind::Logits && ops[i].dst != ops[i].src));
}

} // namespace

std::vector<Phase> compile(const std::vector<Op> &ops, const std::vector<int> &widths,
                           const std::vector<Slot> &slots, const std::vector<Weight> &weights,
                           const std::vector<std::vector<float>> &vectors,
                           const std::vector<std::vector<double>> &freqs,
                           const std::vector<Lora> &loras) {
  Checker c{widths, slots, weights, vectors, freqs, loras};
  for (size_t i = 0; i < ops.size(); ++i)
    c.check(ops[i], i);
  auto last = [](const Op &o) { return o.kind == OpKind::Logits || o.kind == OpKind::Output; };
  if (ops.empty() || !last(ops.back()))
    throw std::invalid_argument("a program ends with Logits or Output");
  if (std::count_if(ops.begin(), ops.end(), last) > 1)
    throw std::invalid_argument("only the last op may be Logits or Output");

  std::vector<Phase> out;
  for (size_t i = 0; i < ops.size();) {
    const Op &o = ops[i];
    // (A last norm in place stays a row op: the last layer gathers rows, which would overlap.)
    const bool normed = feeds_product(ops, i);
    if (normed || o.kind == OpKind::Linear || o.kind == OpKind::Logits) {
      Phase p;
      p.kind = Phase::Matmul;
      if (normed) {
        p.norm = 1;
        p.norm_op = o;
        ++i;
      }
      const int src = ops[i].src;
      if (ops[i].kind == OpKind::Logits) {
        p.logits = true;
        p.mats.push_back(ops[i++]);
      } else {
        auto taken = [&](int b) {
          for (const Op &m : p.mats)
            if (m.dst == b)
              return true;
          return false;
        };
        while (i < ops.size() && ops[i].kind == OpKind::Linear && ops[i].src == src &&
               ops[i].dst != src && !taken(ops[i].dst))
          p.mats.push_back(ops[i++]);
        if (p.mats.size() == 2 && i < ops.size() && ops[i].kind == OpKind::Glu &&
            ops[i].src == p.mats[0].dst && ops[i].k == p.mats[1].dst && ops[i].dst != src) {
          const Op &g = ops[i];
          const bool gate = g.dst == g.src || dead(ops, i + 1, g.src);
          const bool up = g.dst == g.k || dead(ops, i + 1, g.k);
          if (gate && up) {
            p.glu = true;
            p.glu_op = g;
            ++i;
          }
        } else if (p.mats.size() == 1 && i < ops.size() && ops[i].kind == OpKind::Act &&
                   ops[i].src == p.mats[0].dst && ops[i].dst != src &&
                   (ops[i].dst == ops[i].src || dead(ops, i + 1, ops[i].src))) {
          p.then = ops[i].act;
          p.mats[0].dst = ops[i].dst;
          ++i;
        } else if (p.mats.size() == 1 && i < ops.size() && ops[i].kind == OpKind::Add &&
                   ops[i].src == p.mats[0].dst && ops[i].dst != src && ops[i].dst != ops[i].src &&
                   dead(ops, i + 1, ops[i].src)) {
          p.add = true;
          p.add_to = ops[i].dst;
          ++i;
        }
      }
      if (p.norm >= 0) {
        p.keep_norm = p.norm_op.dst == p.norm_op.src || !dead(ops, i, p.norm_op.dst);
        p.private_ok =
            !p.keep_norm && p.add_to != p.norm_op.src && !(p.glu && p.glu_op.dst == p.norm_op.src);
        for (const Op &m : p.mats)
          p.private_ok &= p.logits || m.dst != p.norm_op.src;
      }
      for (const Op &m : p.mats) {
        const Weight &w = weights[static_cast<size_t>(m.weight)];
        p.forms.need(w.layout);
        p.panels += (w.rows + kPanel - 1) / kPanel;
      }
      if (p.glu)
        p.panels /= 2;
      out.push_back(std::move(p));
      continue;
    }
    if (o.kind == OpKind::Experts) {
      Phase p;
      p.kind = Phase::Experts;
      p.experts = o;
      p.forms.need(c.weight(o.weight).layout);
      p.forms.need(c.weight(o.up).layout);
      p.down_forms.need(c.weight(o.down).layout);
      out.push_back(std::move(p));
      ++i;
      continue;
    }
    Phase p;
    if (o.kind == OpKind::Output) {
      p.kind = Phase::Output;
      p.ops.push_back(ops[i++]);
      out.push_back(std::move(p));
      continue;
    }
    while (i < ops.size() && row_wise(ops[i].kind)) {
      if (feeds_product(ops, i))
        break;
      p.ops.push_back(ops[i++]);
    }
    if (i < ops.size() && ops[i].kind == OpKind::Attention) {
      p.kind = Phase::Attention;
      p.attention = ops[i];
      for (const Op &r : p.ops) {
        const bool on_q = r.dst == ops[i].src, on_k = r.dst == ops[i].k;
        const int heads = on_q ? ops[i].heads : ops[i].kv_heads;
        const bool head_wise =
            (r.kind == OpKind::Rope || (r.kind == OpKind::Norm && r.src == r.dst)) &&
            r.heads == heads;
        p.per_head &= (on_q || on_k) && (head_wise || r.kind == OpKind::Scale);
      }
      ++i;
    }
    if (!p.ops.empty() || p.kind == Phase::Attention)
      out.push_back(std::move(p));
  }
  return out;
}

} // namespace insula
