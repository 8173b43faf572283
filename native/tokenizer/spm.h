// SentencePiece's BPE (bpe_model.cc of google/sentencepiece): adjacent symbols whose joined text is
// a token merge, highest score first; what is no token in the end becomes byte tokens.
#pragma once
#include "merger.h"
#include "model.h"

namespace insula::tok {

class SpmModel final : public Model {
public:
  SpmModel(const Vocabulary &vocabulary, bool add_space_prefix);
  void encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const override;
  void piece(std::string_view token, std::string &out) const override;

private:
  struct Scratch;
  void encode_word(std::string_view word, Scratch &scratch, std::vector<int32_t> &out) const;
  void emit(std::string_view text, int32_t id, const Scratch &scratch,
            std::vector<int32_t> &out) const;

  const Vocabulary &vocabulary_;
  bool add_space_prefix_;
  std::vector<uint32_t> ranks_; // by id: place of its score among all, kNoMerge if it never merges
  MarkCutter cutter_;
};

} // namespace insula::tok
