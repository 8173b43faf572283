#include "model.h"
#include "error.h"
#include "unicode.h"

#include <cstdio>

namespace insula::tok {

std::string mark_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  for (const char c : text) {
    if (c == ' ')
      out += kSpaceMark;
    else
      out += c;
  }
  return out;
}

void append_unmarked(std::string_view text, std::string &out) {
  for (size_t i = 0; i < text.size();) {
    if (text.substr(i, 3) == kSpaceMark)
      out += ' ', i += 3;
    else
      out += text[i++];
  }
}

MarkCutter::MarkCutter(const Vocabulary &vocabulary) {
  for (int32_t id = 0; id < int32_t(vocabulary.size()); ++id) {
    const std::string_view text = vocabulary.text(id);
    for (size_t at = text.find(kSpaceMark, 1); at < text.size(); at = text.find(kSpaceMark, at + 3))
      if (at < 3 || text.substr(at - 3, 3) != kSpaceMark)
        crossed_[uint8_t(text[at - 1])] = true;
  }
}

size_t MarkCutter::next(std::string_view text, size_t from) const {
  size_t at = from;
  while (text.substr(at, 3) == kSpaceMark)
    at += 3;
  for (;;) {
    at = text.find(kSpaceMark, at);
    if (at == std::string_view::npos)
      return text.size();
    if (at > from && !crossed_[uint8_t(text[at - 1])])
      return at;
    while (text.substr(at, 3) == kSpaceMark)
      at += 3;
  }
}

void refuse_character(std::string_view text, size_t at) {
  while (at > 0 && (uint8_t(text[at]) & 0xC0) == 0x80)
    --at;
  unsigned length = 0;
  char name[16];
  std::snprintf(name, sizeof name, "U+%04X", unsigned(decode_valid(text.data() + at, length)));
  throw Fault("the text has the character " + std::string(name) +
              ", for which the vocabulary has no token and nothing to fall back on; remove it");
}

void append_byte_tokens(const Vocabulary &vocabulary, std::string_view bytes,
                        std::vector<int32_t> &out) {
  for (const char byte : bytes) {
    const int32_t id = vocabulary.byte_token(uint8_t(byte));
    if (id < 0)
      refuse_character(bytes, 0);
    out.push_back(id);
  }
}

} // namespace insula::tok
