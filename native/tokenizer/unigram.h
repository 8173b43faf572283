// SentencePiece's unigram model (google/sentencepiece, unigram_model.cc and normalizer.cc): the
// text is normalized with the model's own table and cut into the pieces whose scores add up
// highest.
#pragma once
#include "model.h"

namespace insula::tok {

class UnigramModel final : public Model {
public:
  struct Options {
    int32_t unknown;
    bool add_space_prefix, remove_extra_whitespace;
    std::string_view charsmap; // precompiled_charsmap, may be empty; copied
  };
  UnigramModel(const Vocabulary &vocabulary, const Options &options);
  void encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const override;
  void piece(std::string_view token, std::string &out) const override;

private:
  struct Node {
    uint32_t first_edge = 0, edges = 0;
    int32_t id = -1;
  };
  void build(const std::vector<int32_t> &sorted);
  // Index of the child of `node` over `byte`, 0 if there is none.
  uint32_t child(uint32_t node, uint8_t byte) const;
  std::string normalize(std::string_view text) const;
  // What the text at `at` becomes, and how many of its bytes that takes.
  std::pair<std::string_view, size_t> replacement(std::string_view text, size_t at) const;

  const Vocabulary &vocabulary_;
  int32_t unknown_;
  bool add_space_prefix_, remove_extra_whitespace_;
  double unknown_score_;
  std::vector<uint32_t> map_; // double array of the charsmap
  std::string replacements_;  // its replacement texts, each ended by a zero byte
  std::vector<Node> nodes_;
  std::vector<std::pair<uint8_t, uint32_t>> edges_;
};

} // namespace insula::tok
