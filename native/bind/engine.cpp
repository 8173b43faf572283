// Binds the engine: Model, and what the processor offers. Checks shapes; releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <utility>

#include "insula.h"
#include "insula_isa.h"
#include "runtime/page_io.h"
#include "runtime/peak.h"
#include "runtime/topology.h"

namespace nb = nanobind;
using insula::Model;
using insula::Op;
using insula::OpKind;

namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

OpKind kind_of(const std::string &s) {
  for (int i = 0; i <= static_cast<int>(OpKind::Logits); ++i)
    if (s == insula::op_name(static_cast<OpKind>(i)))
      return static_cast<OpKind>(i);
  throw std::invalid_argument("unknown op '" + s + "'");
}

Op op_of(const nb::dict &d) {
  Op o;
  for (auto [key, value] : d) {
    const std::string k = nb::cast<std::string>(key);
    auto i = [&] { return nb::cast<int>(value); };
    auto f = [&] { return nb::cast<float>(value); };
    if (k == "kind")
      o.kind = kind_of(nb::cast<std::string>(value));
    else if (k == "dst")
      o.dst = i();
    else if (k == "src")
      o.src = i();
    else if (k == "k")
      o.k = i();
    else if (k == "v")
      o.v = i();
    else if (k == "weight")
      o.weight = i();
    else if (k == "bias")
      o.bias = i();
    else if (k == "heads")
      o.heads = i();
    else if (k == "kv_heads")
      o.kv_heads = i();
    else if (k == "head_dim")
      o.head_dim = i();
    else if (k == "slot")
      o.slot = i();
    else if (k == "window")
      o.window = i();
    else if (k == "freqs")
      o.freqs = i();
    else if (k == "act")
      o.act = i();
    else if (k == "layer_norm")
      o.layer_norm = nb::cast<bool>(value);
    else if (k == "lora")
      o.lora = i();
    else if (k == "up")
      o.up = i();
    else if (k == "up_bias")
      o.up_bias = i();
    else if (k == "down")
      o.down = i();
    else if (k == "down_bias")
      o.down_bias = i();
    else if (k == "experts")
      o.experts = i();
    else if (k == "used")
      o.used = i();
    else if (k == "among_used")
      o.among_used = nb::cast<bool>(value);
    else if (k == "causal")
      o.causal = nb::cast<bool>(value);
    else if (k == "neox")
      o.neox = nb::cast<bool>(value);
    else if (k == "eps")
      o.eps = f();
    else if (k == "scale")
      o.scale = f();
    else if (k == "softcap")
      o.softcap = f();
    else if (k == "mscale")
      o.mscale = f();
    else
      throw std::invalid_argument("unknown key '" + k + "' in an op");
  }
  return o;
}

insula::KVType kv_type(const std::string &s) {
  using insula::KVType;
  for (auto [name, type] : {std::pair{"f16", KVType::F16}, std::pair{"f32", KVType::F32},
                            std::pair{"int8", KVType::I8}})
    if (s == name)
      return type;
  throw std::invalid_argument("unknown type '" + s + "' of keys and values");
}

using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

Logits step(Model &m, Ints tokens, Ints positions, Ints rows, std::vector<Ints> tables,
            Ints logit_rows, std::optional<Ints> adapters) {
  if (positions.shape(0) != tokens.shape(0) || rows.shape(0) != tokens.shape(0))
    throw std::invalid_argument("tokens, positions and rows differ in length");
  insula::Batch b;
  b.tokens = tokens.data(), b.positions = positions.data(), b.rows = rows.data();
  b.T = static_cast<int>(tokens.shape(0));
  for (const Ints &t : tables) {
    b.tables.push_back(t.data());
    b.table_sizes.push_back(static_cast<int>(t.shape(0)));
  }
  if (adapters) {
    if (adapters->shape(0) != tables.size())
      throw std::invalid_argument("an adapter for each table is needed");
    b.adapters = adapters->data();
  }
  b.logit_rows = logit_rows.data(), b.R = static_cast<int>(logit_rows.shape(0));
  const size_t R = logit_rows.shape(0), V = static_cast<size_t>(m.n_vocab());
  float *out = new float[R * V + 1];
  nb::capsule owner(out, [](void *p) noexcept { delete[] static_cast<float *>(p); });
  {
    nb::gil_scoped_release release;
    m.step(b, out);
  }
  return Logits(out, {R, V}, owner);
}

uint64_t save_page(Model &m, int page, int tokens, OutBytes out) {
  if (out.shape(0) != m.page_bytes())
    throw std::invalid_argument("a page has " + std::to_string(m.page_bytes()) + " bytes, not " +
                                std::to_string(out.shape(0)));
  nb::gil_scoped_release release;
  return m.save_page(page, tokens, out.data());
}

nb::list load_pages(Model &m, const std::vector<int> &pages, const std::vector<int> &files,
                    uint64_t offset) {
  std::vector<uint64_t> sums;
  std::vector<bool> read;
  {
    nb::gil_scoped_release release;
    read = m.load_pages(pages, files, offset, sums);
  }
  nb::list out;
  for (size_t i = 0; i < sums.size(); ++i)
    out.append(read[i] ? nb::cast(sums[i]) : nb::none());
  return out;
}

} // namespace

void bind_engine(nb::module_ &m) {
  nb::class_<Model>(m, "Model", "A packed model: weights, a program of ops, pages of state.")
      .def(nb::init<const std::string &, int>(), nb::arg("isa") = "", nb::arg("threads") = 0)
      .def(
          "add_weight",
          [](Model &self, int type, int rows, int cols, Bytes data, bool drop) {
            nb::gil_scoped_release release;
            return self.add_weight(type, rows, cols, data.data(), data.shape(0), drop);
          },
          nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("data"), nb::arg("drop"))
      .def_static("packed_bytes", &Model::packed_bytes, nb::arg("type"), nb::arg("rows"),
                  nb::arg("cols"), "Bytes of a matrix as the kernels read it.")
      .def(
          "pack",
          [](Model &self, int type, int rows, int cols, Bytes data, bool drop, OutBytes out) {
            if (out.shape(0) != Model::packed_bytes(type, rows, cols))
              throw std::invalid_argument("the buffer for a packed tensor has another size");
            nb::gil_scoped_release release;
            self.pack(type, rows, cols, data.data(), data.shape(0), drop, out.data());
          },
          nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("data"), nb::arg("drop"),
          nb::arg("out"))
      .def(
          "add_packed",
          [](Model &self, int type, int rows, int cols, Bytes data) {
            return self.add_packed(type, rows, cols, data.data(), data.shape(0));
          },
          nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("data"),
          nb::keep_alive<1, 5>(), "Weights that lie packed already; they are not copied.")
      .def("add_vector",
           [](Model &self, Floats v) { return self.add_vector(v.data(), v.shape(0)); })
      .def("add_lora", &Model::add_lora, nb::arg("factors"),
           "What an op Lora adds: of each adapter two weights, [r, in] and [out, r], or -1.")
      .def("add_freqs", [](Model &self, Doubles v) { return self.add_freqs(v.data(), v.shape(0)); })
      .def(
          "set_program",
          [](Model &self, const nb::list &ops, std::vector<int> widths,
             const std::vector<std::vector<int>> &slots) {
            std::vector<Op> list;
            for (nb::handle h : ops)
              list.push_back(op_of(nb::cast<nb::dict>(h)));
            std::vector<insula::Slot> s;
            for (const auto &t : slots) {
              if (t.size() != 2)
                throw std::invalid_argument("a slot is (kv_heads, head_dim)");
              s.push_back({t[0], t[1]});
            }
            self.set_program(std::move(list), std::move(widths), std::move(s));
          },
          nb::arg("ops"), nb::arg("widths"), nb::arg("slots"))
      .def(
          "allocate",
          [](Model &self, int n_pages, const std::string &kv, int max_rows) {
            self.allocate(n_pages, kv_type(kv), max_rows);
          },
          nb::arg("n_pages"), nb::arg("kv_type"), nb::arg("max_rows"))
      .def("step", &step, nb::arg("tokens"), nb::arg("positions"), nb::arg("rows"),
           nb::arg("tables"), nb::arg("logit_rows"), nb::arg("adapters") = nb::none(),
           "One forward pass: float32 [len(logit_rows), n_vocab].")
      .def("copy_page", &Model::copy_page, nb::arg("src"), nb::arg("dst"))
      .def("populate", &Model::populate, nb::arg("pages"), nb::call_guard<nb::gil_scoped_release>(),
           "Memory for the first pages now, and not when they are first written.")
      .def("save_page", &save_page, nb::arg("page"), nb::arg("tokens"), nb::arg("out"),
           "Copy a page's bytes to uint8[page_bytes], zeros from position `tokens` on; their "
           "checksum.")
      .def("load_pages", &load_pages, nb::arg("pages"), nb::arg("files"), nb::arg("offset"),
           "Fill pages from descriptors; each one's checksum, None if it could not be read.")
      .def_prop_ro("n_vocab", &Model::n_vocab)
      .def_prop_ro("n_pages", &Model::n_pages)
      .def_prop_ro("max_rows", &Model::max_rows)
      .def_prop_ro("threads", &Model::threads)
      .def_prop_ro("isa", &Model::isa)
      .def_prop_ro("page_bytes", &Model::page_bytes)
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
      .def_prop_ro("kernel_calls", &Model::kernel_calls)
      .def_prop_ro("tile_products", &Model::tile_products)
      .def_prop_ro("phases", &Model::phases);

  m.def(
      "checksum",
      [](Bytes data) {
        nb::gil_scoped_release release;
        return insula::checksum(data.data(), data.shape(0));
      },
      nb::arg("data"), "64 bits against damage, as pages on disk carry them.");
  m.def(
      "isa_levels",
      [] {
        std::vector<std::string> out;
        for (const auto &l : insula::levels())
          if (l.available)
            out.push_back(l.name);
        return out;
      },
      "Instruction-set levels that this processor can run, the fastest first.");
  m.def("cpu_info", [] {
    const insula::Topology t = insula::topology();
    nb::dict d;
    d["name"] = t.name;
    d["logical"] = t.logical;
    d["allowed"] = t.allowed;
    d["physical"] = t.physical;
    d["quota"] = t.quota;
    d["threads"] = t.threads;
    nb::dict levels;
    for (const auto &l : insula::levels())
      levels[l.name] = l.available;
    d["levels"] = levels;
    return d;
  });
  m.def(
      "measure_bandwidth",
      [](int threads, int megabytes) {
        if (threads < 1 || threads > 1024 || megabytes < 1)
          throw std::invalid_argument("threads must be 1..1024 and megabytes positive");
        nb::gil_scoped_release release;
        return insula::read_bandwidth(threads, static_cast<size_t>(megabytes));
      },
      nb::arg("threads"), nb::arg("megabytes"),
      "GB/s that the threads read together, with software prefetch: the limit of decoding.");
  m.def(
      "measure_int8",
      [](int threads, const std::string &isa) {
        if (threads < 1 || threads > 1024)
          throw std::invalid_argument("threads must be 1..1024");
        std::string error;
        const insula::KernelTable *table = insula::select_level(isa.c_str(), &error);
        if (!table)
          throw std::invalid_argument(error);
        nb::gil_scoped_release release;
        return insula::int8_peak(*table, threads);
      },
      nb::arg("threads"), nb::arg("isa") = "",
      "1e9 int8 operations a second that the threads do together at a level (default: the best), "
      "a multiply-add being two: the limit of prefill.");
}
