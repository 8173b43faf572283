// Finds tokens that stand for themselves in text: at each place the longest one, left to right,
// as SentencePiece's user-defined symbols and the added tokens of Hugging Face do.
#pragma once
#include "vocabulary.h"

namespace insula::tok {

class SpecialMatcher {
public:
  // Takes every token that has one of `bits` and none of `without`.
  SpecialMatcher(const Vocabulary &vocabulary, int bits, int without);

  struct Match {
    int32_t id; // -1: none
    size_t begin, end;
  };
  // The first match that begins at or after `from`.
  Match next(std::string_view text, size_t from) const;
  bool empty() const { return ids_.empty(); }

private:
  const Vocabulary &vocabulary_;
  std::vector<int32_t> ids_;           // by text
  std::array<uint32_t, 257> starts_{}; // ids_ whose text begins with this byte
};

} // namespace insula::tok
