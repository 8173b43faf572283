// BERT's tokenization (google-research/bert, tokenization.py): clean, split at white space,
// punctuation and CJK ideographs, then greedy longest pieces. In GGUF a piece that begins a word is
// written with a leading U+2581 and a continuation without its ##.
#pragma once
#include "model.h"

namespace insula::tok {

class WordPieceModel final : public Model {
public:
  WordPieceModel(const Vocabulary &vocabulary, int32_t unknown, bool lowercase, bool strip_accents);
  void encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const override;
  void piece(std::string_view token, std::string &out) const override;

private:
  void encode_word(std::string_view word, size_t characters, std::vector<int32_t> &out) const;

  const Vocabulary &vocabulary_;
  int32_t unknown_;
  bool lowercase_, strip_accents_;
};

} // namespace insula::tok
