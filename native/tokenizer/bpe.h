// Byte-pair encoding by ranked merges: over bytes written as GPT-2's printable characters, or, for
// vocabularies in SentencePiece style (gemma4), over characters with byte tokens to fall back on.
#pragma once
#include "merger.h"
#include "model.h"
#include "pretokenizers.h"

namespace insula::tok {

class BpeModel final : public Model {
public:
  // Throws Fault for merges that name unknown tokens, and for a vocabulary of another kind.
  BpeModel(const Vocabulary &vocabulary, const Strings &merges, const PreRule &rule);
  void encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const override;
  void piece(std::string_view token, std::string &out) const override;

private:
  struct Slot {
    uint64_t key = 0; // left id, right id, plus one; 0: free
    Merge merge;
  };
  Merge find(int32_t left, int32_t right) const;
  void read_merges(const Strings &merges);
  void encode_bytes(std::string_view word, Merger &merger, std::vector<int32_t> &out) const;
  void encode_characters(std::string_view word, Merger &merger, std::vector<int32_t> &out) const;
  int32_t whole(std::string_view word) const;

  const Vocabulary &vocabulary_;
  const PreRule &rule_;
  const PreTokenizer &pre_;
  std::vector<Slot> slots_;
  std::vector<MarkCutter> cutter_;          // one, in SentencePiece style
  std::array<int32_t, 256> byte_symbols_{}; // ids of GPT-2's characters for each byte, -1 if absent
};

} // namespace insula::tok
