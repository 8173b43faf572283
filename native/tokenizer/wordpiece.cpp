#include "wordpiece.h"
#include "unicode.h"
#include <algorithm>

namespace insula::tok {

namespace {

// max_input_chars_per_word of every published BERT: a longer word is unknown.
constexpr size_t kLongestWord = 100;

// The blocks that BERT sets apart as words of one character each.
bool is_ideograph(uint32_t cp) {
  static constexpr std::pair<uint32_t, uint32_t> kBlocks[] = {
      {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
      {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks),
                     [cp](const auto &b) { return cp >= b.first && cp <= b.second; });
}

bool is_punctuation(uint32_t cp) {
  if (cp < 128)
    return in_categories(cp, kPunctuation | kSymbols);
  return in_categories(cp, kPunctuation);
}

} // namespace

WordPieceModel::WordPieceModel(const Vocabulary &vocabulary, int32_t unknown, bool lowercase,
                               bool strip_accents)
    : vocabulary_(vocabulary), unknown_(unknown), lowercase_(lowercase),
      strip_accents_(strip_accents) {}

void WordPieceModel::encode_word(std::string_view word, size_t characters,
                                 std::vector<int32_t> &out) const {
  const size_t start = out.size();
  for (size_t at = 0; at < word.size();) {
    int32_t id = -1;
    size_t stop = std::min(word.size(), at + vocabulary_.longest());
    for (; stop > at; --stop) {
      if (stop < word.size() && (uint8_t(word[stop]) & 0xC0) == 0x80)
        continue;
      id = vocabulary_.find(word.substr(at, stop - at));
      if (id >= 0 && !vocabulary_.has(id, Control | Unknown))
        break;
      id = -1;
    }
    if (id < 0 || characters > kLongestWord) {
      out.resize(start);
      return out.push_back(unknown_);
    }
    out.push_back(id);
    at = stop;
  }
}

void WordPieceModel::encode(std::string_view text, bool, std::vector<int32_t> &out) const {
  std::vector<uint32_t> code_points;
  code_points.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    unsigned length = 0;
    code_points.push_back(decode_valid(text.data() + i, length));
    i += length;
  }
  if (strip_accents_)
    nfd(code_points);

  std::string word(kSpaceMark);
  size_t characters = 0;
  const auto finish = [&] {
    if (characters)
      encode_word(word, characters, out);
    word.resize(kSpaceMark.size());
    characters = 0;
  };
  for (uint32_t cp : code_points) {
    const uint8_t p = properties(cp);
    const uint32_t category = 1u << (p & kCategoryMask);
    // As in BERT, U+000B, U+0085 and their like are control characters first and go without a
    // trace; only tab, line feed and carriage return separate words.
    const bool line = cp == '\t' || cp == '\n' || cp == '\r';
    if (cp == 0 || cp == 0xFFFD || (category & (bit(Cc) | bit(Cf) | bit(Cs) | bit(Co)) && !line))
      continue;
    if (p & kWhitespace) {
      finish();
      continue;
    }
    if (strip_accents_ && category & bit(Mn))
      continue;
    if (lowercase_)
      cp = to_lower(cp);
    const bool alone = is_punctuation(cp) || is_ideograph(cp);
    if (alone)
      finish();
    // A word too long to be known need not be kept whole.
    if (characters <= kLongestWord)
      append_utf8(word, cp);
    ++characters;
    if (alone)
      finish();
  }
  finish();
}

void WordPieceModel::piece(std::string_view token, std::string &out) const {
  append_unmarked(token, out);
}

} // namespace insula::tok
