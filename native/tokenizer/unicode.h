// Code points, their properties, and UTF-8. Everything here is total: any byte string and any
// 32-bit value give an answer; what is not a code point has category Cn.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace insula::tok {

// General categories in the order of tools/unicode_tables.py.
enum Category : uint8_t {
  Lu,
  Ll,
  Lt,
  Lm,
  Lo,
  Mn,
  Mc,
  Me,
  Nd,
  Nl,
  No,
  Pc,
  Pd,
  Ps,
  Pe,
  Pi,
  Pf,
  Po,
  Sm,
  Sc,
  Sk,
  So,
  Zs,
  Zl,
  Zp,
  Cc,
  Cf,
  Cs,
  Co,
  Cn,
  kCategories
};
constexpr uint8_t kCategoryMask = 0x1F, kWhitespace = 0x20, kHan = 0x40;

namespace tables {
extern const uint16_t block_index[];
extern const uint8_t block_pool[];
extern const size_t lowercase_count, decomposition_count, combining_count;
extern const uint32_t lowercase[], decomposition_keys[], decomposition_pool[], combining[];
extern const uint16_t decomposition_starts[];
} // namespace tables

// The property byte: category | kWhitespace | kHan.
inline uint8_t properties(uint32_t cp) {
  if (cp > 0x10FFFF)
    return Cn;
  return tables::block_pool[size_t(tables::block_index[cp >> 8]) * 256 + (cp & 255)];
}
constexpr uint32_t bit(Category c) { return 1u << c; }
constexpr uint32_t kLetters = bit(Lu) | bit(Ll) | bit(Lt) | bit(Lm) | bit(Lo);
constexpr uint32_t kMarks = bit(Mn) | bit(Mc) | bit(Me);
constexpr uint32_t kNumbers = bit(Nd) | bit(Nl) | bit(No);
constexpr uint32_t kPunctuation =
    bit(Pc) | bit(Pd) | bit(Ps) | bit(Pe) | bit(Pi) | bit(Pf) | bit(Po);
constexpr uint32_t kSymbols = bit(Sm) | bit(Sc) | bit(Sk) | bit(So);
inline bool in_categories(uint32_t cp, uint32_t mask) {
  return mask >> (properties(cp) & kCategoryMask) & 1;
}

// Length that a lead byte announces; 1 for a byte that cannot lead.
inline unsigned utf8_length(uint8_t lead) {
  return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF8 ? 4 : 1;
}

// The code point at p. The text must be valid UTF-8 (find_invalid() == npos).
inline uint32_t decode_valid(const char *p, unsigned &length) {
  const auto *u = reinterpret_cast<const uint8_t *>(p);
  if (u[0] < 0x80)
    return length = 1, u[0];
  if (u[0] < 0xE0)
    return length = 2, uint32_t(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
  if (u[0] < 0xF0)
    return length = 3, uint32_t(u[0] & 0x0F) << 12 | uint32_t(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
  return length = 4, uint32_t(u[0] & 0x07) << 18 | uint32_t(u[1] & 0x3F) << 12 |
                         uint32_t(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
}

// Offset of the first byte that is not part of well-formed UTF-8 (Unicode table 3-7: no
// overlongs, no surrogates, at most U+10FFFF), or npos.
size_t find_invalid(std::string_view text);
void append_utf8(std::string &out, uint32_t cp);
uint32_t to_lower(uint32_t cp);
// Canonical decomposition and ordering (NFD), Hangul included.
void nfd(std::vector<uint32_t> &code_points);

} // namespace insula::tok
