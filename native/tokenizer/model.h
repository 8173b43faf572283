// What every tokenizer family offers: ids for a stretch of text without special tokens.
#pragma once
#include "vocabulary.h"

namespace insula::tok {

class Model {
public:
  virtual ~Model() = default;
  // Appends the ids of `text` (valid UTF-8). `at_start`: nothing but special tokens came before.
  // Throws Fault where the vocabulary has no token for some of it.
  virtual void encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const = 0;
  // Appends the bytes that a normal token stands for.
  virtual void piece(std::string_view token, std::string &out) const = 0;
};

// Remembers where in the output the ids of a word are, for as long as text and output live.
class WordCache {
public:
  explicit WordCache(size_t text_bytes) {
    size_t slots = 16;
    while (slots < text_bytes / 8 && slots < 32768)
      slots *= 2;
    entries_.resize(slots);
  }
  // Appends the ids of `word`: again from `out` if it came before, else by calling encode().
  template <class Encode>
  void append(std::string_view word, std::vector<int32_t> &out, Encode encode) {
    const uint64_t hash = hash_text(word);
    Entry &entry = entries_[hash & (entries_.size() - 1)];
    if (entry.hash == hash && entry.word == word) {
      const size_t from = entry.from, to = entry.to;
      for (size_t i = from; i < to; ++i)
        out.push_back(out[i]);
      return;
    }
    const size_t from = out.size();
    encode();
    entry = {hash, word, uint32_t(from), uint32_t(out.size())};
  }

private:
  struct Entry {
    uint64_t hash = 0;
    std::string_view word;
    uint32_t from = 0, to = 0;
  };
  std::vector<Entry> entries_;
};

// U+2581, which stands for a space in SentencePiece vocabularies.
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";
std::string mark_spaces(std::string_view text);
void append_unmarked(std::string_view text, std::string &out);

// Cuts marked text before each space mark that follows something else. No merge can reach across
// such a cut unless some token does: bytes before which a token goes on to a mark are no cuts.
class MarkCutter {
public:
  explicit MarkCutter(const Vocabulary &vocabulary);
  // The end of the word that begins at `from`.
  size_t next(std::string_view text, size_t from) const;

private:
  std::array<bool, 256> crossed_{};
};

// Throws Fault that names the character of `text` (valid UTF-8) to which byte `at` belongs.
[[noreturn]] void refuse_character(std::string_view text, size_t at);

// Appends <0xHH> tokens for `bytes`; throws Fault where the vocabulary has none.
void append_byte_tokens(const Vocabulary &vocabulary, std::string_view bytes,
                        std::vector<int32_t> &out);

} // namespace insula::tok
