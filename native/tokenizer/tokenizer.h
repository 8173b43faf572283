// The face of the room: a checked vocabulary with its family's algorithm, special tokens and
// begin/end rules. Immutable once built: any number of threads may encode and decode at once.
#pragma once
#include "model.h"
#include "special_matcher.h"
#include <memory>

namespace insula::tok {

// The metadata of a model file, unchecked. A token id of -1 and a flag of -1 mean "not given".
struct Metadata {
  std::string model, pre, name, architecture;
  Strings tokens, merges;
  bool has_merges = false;
  const float *scores = nullptr; // as long as tokens
  const int32_t *types = nullptr;
  int64_t bos = -1, eos = -1, eot = -1, eom = -1, unk = -1, sep = -1, pad = -1, cls = -1, mask = -1;
  int add_bos = -1, add_eos = -1, add_space_prefix = -1, remove_extra_whitespace = -1;
  int lowercase = -1, strip_accents = -1;
  std::string_view charsmap;
};

class Tokenizer {
public:
  // Throws Fault for metadata that contradicts itself and for what is not implemented.
  explicit Tokenizer(const Metadata &metadata);

  // `text` must be valid UTF-8 of less than 2 GiB (Fault otherwise); it may hold zero bytes.
  // parse_special: the texts of control tokens become those tokens.
  // plain: ascending byte offsets where a control token's text is only text.
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool parse_special,
                              const std::vector<size_t> &plain = {}) const;
  // Byte offsets where the text of a control token begins, also within another's.
  std::vector<size_t> control_texts(std::string_view text) const;
  // The bytes a token stands for, special tokens by their text. Throws Fault for an unknown id.
  std::string piece(int64_t id) const;
  // All pieces in a row. skip_special leaves control tokens out; continues: the ids follow on
  // other text, so that the first keeps the space that a vocabulary puts before a first word.
  std::string decode(const int64_t *ids, size_t count, bool skip_special, bool continues) const;

  bool is_special(int64_t id) const { return vocabulary_.has(checked(id), Control | Unknown); }
  const Vocabulary &vocabulary() const { return vocabulary_; }
  bool add_bos() const { return add_bos_; }
  bool add_eos() const { return add_eos_; }
  // Whether decode() drops one leading space at the start of a text.
  bool strips_space() const { return strips_space_; }
  const std::string &family() const { return family_; } // bpe, spm, wordpiece, unigram
  int32_t bos, eos, eot, eom, unk, sep, pad, mask;      // -1: none
  std::vector<int32_t> end_ids;                         // every token that ends an answer, sorted

private:
  int32_t checked(int64_t id) const;
  int32_t special_id(const char *key, int64_t id) const;
  void read_special_ids(const Metadata &metadata);
  void mark_special_tokens(const Metadata &metadata);
  void build_model(const Metadata &metadata);

  Vocabulary vocabulary_;
  std::string family_;
  bool add_bos_ = false, add_eos_ = false, strips_space_ = false;
  std::unique_ptr<Model> model_;
  std::unique_ptr<SpecialMatcher> all_special_, user_special_;
};

} // namespace insula::tok
