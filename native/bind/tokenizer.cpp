// insula::tok for Python. Text goes in as UTF-8 bytes and ids come out as int32 arrays; a Fault
// becomes the error of insula.errors that it is. The GIL is released while text is worked on.
#include "../tokenizer/tokenizer.h"
#include "../tokenizer/error.h"
#include "../tokenizer/pretokenizers.h"
#include "../tokenizer/unicode.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <optional>

namespace nb = nanobind;
using namespace nb::literals;
using insula::tok::Fault;
using insula::tok::Tokenizer;

namespace {

template <class T> using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

insula::tok::Strings strings(const Array<uint8_t> &blob, const Array<int64_t> &offsets) {
  return {reinterpret_cast<const char *>(blob.data()), blob.size(), offsets.data(),
          offsets.size() ? offsets.size() - 1 : 0};
}

// What may be missing from a dictionary is -1.
int64_t number(const nb::dict &values, const char *key) {
  return values.contains(key) ? nb::cast<int64_t>(values[key]) : -1;
}

void build(Tokenizer *self, const nb::dict &texts, const nb::dict &numbers,
           const Array<uint8_t> &token_blob, const Array<int64_t> &token_offsets,
           const std::optional<Array<uint8_t>> &merge_blob,
           const std::optional<Array<int64_t>> &merge_offsets,
           const std::optional<Array<float>> &scores, const std::optional<Array<int32_t>> &types,
           const std::optional<Array<uint8_t>> &charsmap) {
  insula::tok::Metadata m;
  const auto text = [&](const char *key) {
    return texts.contains(key) ? nb::cast<std::string>(texts[key]) : std::string();
  };
  m.model = text("model");
  m.pre = text("pre");
  m.name = text("name");
  m.architecture = text("architecture");
  m.tokens = strings(token_blob, token_offsets);
  m.has_merges = merge_blob && merge_offsets;
  if (m.has_merges)
    m.merges = strings(*merge_blob, *merge_offsets);
  if ((scores && scores->size() < m.tokens.count) || (types && types->size() < m.tokens.count))
    throw Fault("tokenizer.ggml.scores or token_type is shorter than tokenizer.ggml.tokens");
  m.scores = scores ? scores->data() : nullptr;
  m.types = types ? types->data() : nullptr;
  m.bos = number(numbers, "bos_token_id");
  m.eos = number(numbers, "eos_token_id");
  m.eot = number(numbers, "eot_token_id");
  m.eom = number(numbers, "eom_token_id");
  m.unk = number(numbers, "unknown_token_id");
  m.sep = number(numbers, "seperator_token_id");
  m.pad = number(numbers, "padding_token_id");
  m.cls = number(numbers, "cls_token_id");
  m.mask = number(numbers, "mask_token_id");
  const auto flag = [&](const char *key) { return int(number(numbers, key)); };
  m.add_bos = flag("add_bos_token");
  m.add_eos = flag("add_eos_token");
  m.add_space_prefix = flag("add_space_prefix");
  m.remove_extra_whitespace = flag("remove_extra_whitespaces");
  m.lowercase = flag("normalizer.lowercase");
  m.strip_accents = flag("normalizer.strip_accents");
  if (charsmap)
    m.charsmap = {reinterpret_cast<const char *>(charsmap->data()), charsmap->size()};
  nb::gil_scoped_release release;
  new (self) Tokenizer(m);
}

using Ids = nb::ndarray<nb::numpy, int32_t, nb::ndim<1>>;

Ids encode(const Tokenizer &self, const nb::bytes &text, bool add_special, bool parse_special,
           const std::vector<size_t> &plain) {
  auto ids = std::make_unique<std::vector<int32_t>>();
  const std::string_view view(text.c_str(), text.size()); // the argument keeps the bytes alive
  if (view.size() < 1024) {
    *ids = self.encode(view, add_special, parse_special, plain);
  } else {
    nb::gil_scoped_release release;
    *ids = self.encode(view, add_special, parse_special, plain);
  }
  auto *kept = ids.release();
  nb::capsule owner(kept, [](void *p) noexcept { delete static_cast<std::vector<int32_t> *>(p); });
  return Ids(kept->data(), {kept->size()}, owner);
}

nb::bytes decode(const Tokenizer &self, const Array<int64_t> &ids, bool skip_special,
                 bool continues) {
  std::string bytes;
  {
    nb::gil_scoped_release release;
    bytes = self.decode(ids.data(), ids.size(), skip_special, continues);
  }
  return nb::bytes(bytes.data(), bytes.size());
}

std::optional<int32_t> known(int32_t id) { return id < 0 ? std::nullopt : std::optional(id); }

void translate(const std::exception_ptr &thrown, void *) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Fault &fault) {
    const nb::object errors = nb::module_::import_("insula.errors");
    const char *name = fault.unsupported ? "UnsupportedError" : "TokenizerError";
    // Messages quote text of the file, which need not be UTF-8.
    const nb::object message = nb::steal(
        PyUnicode_DecodeUTF8(fault.what(), Py_ssize_t(std::char_traits<char>::length(fault.what())),
                             "backslashreplace"));
    PyErr_SetObject(errors.attr(name).ptr(), message.ptr());
  }
}

} // namespace

void bind_tokenizer(nb::module_ &m) {
  nb::register_exception_translator(translate);
  nb::class_<Tokenizer>(m, "Tokenizer",
                        "A checked vocabulary and its algorithm; see insula.tokenizer.")
      .def("__init__", &build, "texts"_a, "numbers"_a, "token_blob"_a, "token_offsets"_a,
           "merge_blob"_a.none(), "merge_offsets"_a.none(), "scores"_a.none(), "types"_a.none(),
           "charsmap"_a.none())
      .def("encode", &encode, "text"_a, "add_special"_a, "parse_special"_a,
           "plain"_a = std::vector<size_t>())
      .def("control_texts",
           [](const Tokenizer &self, const nb::bytes &text) {
             return self.control_texts({text.c_str(), text.size()});
           })
      .def("decode", &decode, "ids"_a, "skip_special"_a, "continues"_a)
      .def(
          "piece",
          [](const Tokenizer &self, int64_t id) {
            const std::string bytes = self.piece(id);
            return nb::bytes(bytes.data(), bytes.size());
          },
          "id"_a)
      .def("is_special", &Tokenizer::is_special, "id"_a)
      .def(
          "find",
          [](const Tokenizer &self, const std::string &text) {
            return known(self.vocabulary().find(text));
          },
          "text"_a)
      .def_prop_ro("size", [](const Tokenizer &self) { return self.vocabulary().size(); })
      .def_prop_ro("family", &Tokenizer::family)
      .def_prop_ro("add_bos", &Tokenizer::add_bos)
      .def_prop_ro("add_eos", &Tokenizer::add_eos)
      .def_prop_ro("strips_space", &Tokenizer::strips_space)
      .def_prop_ro("bos", [](const Tokenizer &self) { return known(self.bos); })
      .def_prop_ro("eos", [](const Tokenizer &self) { return known(self.eos); })
      .def_prop_ro("eot", [](const Tokenizer &self) { return known(self.eot); })
      .def_prop_ro("eom", [](const Tokenizer &self) { return known(self.eom); })
      .def_prop_ro("unk", [](const Tokenizer &self) { return known(self.unk); })
      .def_prop_ro("sep", [](const Tokenizer &self) { return known(self.sep); })
      .def_prop_ro("pad", [](const Tokenizer &self) { return known(self.pad); })
      .def_prop_ro("end_ids", [](const Tokenizer &self) { return self.end_ids; });
  m.def(
      "pretokenizer_steps",
      [](const std::string &name) {
        std::vector<std::string> steps;
        for (const std::string_view step : insula::tok::pre_rule(name).steps)
          steps.emplace_back(step);
        return steps;
      },
      "name"_a, "The expressions of a pre-tokenizer; one that begins with @ is a function.");
  m.def("pretokenizer_names", [] {
    std::vector<std::string> names;
    for (const std::string_view name : insula::tok::pre_names())
      names.emplace_back(name);
    return names;
  });
  m.def(
      "pretokenize",
      [](const std::string &name, const nb::bytes &text) {
        const std::string_view view(text.c_str(), text.size());
        if (insula::tok::find_invalid(view) != std::string_view::npos)
          throw Fault("the text is not valid UTF-8");
        std::vector<size_t> ends;
        insula::tok::PreTokenizer::of(insula::tok::pre_rule(name))
            .split(view.data(), 0, view.size(), ends);
        return ends;
      },
      "name"_a, "text"_a, "End offsets of the pieces that a pre-tokenizer cuts text into.");
}
