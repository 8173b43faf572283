// The regular expressions of pre-tokenizers, as Oniguruma reads them over Unicode text:
// literals, \r \n \t \x{..} \s \S \d \p{..}, classes with ranges, negation, nesting and &&, groups
// ( ), (?: ), (?i: ), alternation, ? * + {m} {m,n} (greedy; possessive with a second +), and
// (?! ) (?= ) over one set. Anything else is refused when the pattern is compiled.
// Backtracking, with one frame per run instead of one per character; the patterns in
// pretokenizers.cpp are written so that a split is linear in the text.
#pragma once
#include "charset.h"

namespace insula::tok {

class Regex {
public:
  explicit Regex(std::string_view pattern);

  // Isolates every match in text[begin, end) (valid UTF-8): appends the end offset of each piece,
  // matched or not, in order. Look-ahead sees no further than `end`.
  struct Frame { // where to resume: a choice, or a run that can give one more character back
    uint32_t pc;
    bool run;
    size_t position, least;
  };
  using Scratch = std::vector<Frame>;
  void split(const char *text, size_t begin, size_t end, std::vector<size_t> &ends,
             Scratch &stack) const;

private:
  friend class RegexCompiler;
  enum class Op : uint8_t {
    One,
    Span,
    SpanPossessive,
    Split,
    Jump,
    Ahead,
    NotAhead,
    Mark,
    Cut,
    Match
  };
  struct Instruction {
    Op op;
    uint32_t set = 0;      // One, Span*, *Ahead: which set; Mark, Cut: which register
    uint32_t x = 0, y = 0; // Span*: least and most; Split: first and second choice; Jump: target
  };
  struct Alternative {
    CharSet first; // code points a match can begin with
    uint32_t start;
  };
  static constexpr uint32_t kMany = 0xFFFFFFFF;

  size_t match(const char *text, size_t from, size_t end, uint32_t pc, Scratch &stack) const;

  std::vector<CharSet> sets_;
  std::vector<Instruction> code_;
  std::vector<Alternative> alternatives_;
  uint32_t registers_ = 0;
  std::array<uint32_t, 128> ascii_{}; // alternatives that an ASCII character can begin, as bits
};

} // namespace insula::tok
