// What a name in tokenizer.ggml.pre stands for: how text is cut before merging, and which flags
// come with it. The names are llama.cpp's (src/llama-vocab.cpp, MIT). The expressions are the
// model's own (tokenizer.json), as llama.cpp quotes them: where it runs an adaptation of its own
// because std::regex has no Unicode categories, the quoted original is what stands here.
// A name that is not in the table is refused, and so is one whose expression is not known exactly.
#pragma once
#include "regex.h"

namespace insula::tok {

struct PreRule {
  std::string_view names;              // space-separated, with one space at each end
  std::vector<std::string_view> steps; // each cuts the pieces of the one before
  bool ignore_merges = false;          // a piece that is a token is that token
  bool add_bos = false;                // when the file does not say
  bool spm_style = false;              // raw UTF-8 with U+2581 for spaces, <0xXX> for bytes
  bool newline_tokens = false;         // a run of newlines that is a token is that token
};

// Throws Fault, which names what is known, for any other name.
const PreRule &pre_rule(std::string_view name);
// Every name of the table, for tests and messages.
std::vector<std::string_view> pre_names();

class PreTokenizer {
public:
  explicit PreTokenizer(const PreRule &rule);
  // The one of this rule, compiled when it is first asked for.
  static const PreTokenizer &of(const PreRule &rule);
  // Replaces `ends` by the end offsets of the pieces of text[begin, end), valid UTF-8.
  void split(const char *text, size_t begin, size_t end, std::vector<size_t> &ends) const;

private:
  using Cutter = void (*)(const char *, size_t, size_t, std::vector<size_t> &);
  struct Step {
    Cutter cutter;
    std::vector<Regex> regex; // one, where there is no cutter
  };
  std::vector<Step> steps_;
};

} // namespace insula::tok
