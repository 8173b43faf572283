#include "vocabulary.h"
#include "error.h"
#include "unicode.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

namespace insula::tok {

namespace {

uint64_t seed() {
  static const uint64_t value = [] {
    std::random_device device;
    return (uint64_t(device()) << 32 | device()) | 1;
  }();
  return value;
}

// Folds the 128-bit product: the mixing step of wyhash (Wang Yi, public domain).
uint64_t mix(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide(a) * b;
  return uint64_t(product) ^ uint64_t(product >> 64);
#else
  const uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + uint32_t(middle);
  return (other << 32 | uint32_t(a0 * b0)) ^ (a1 * b1 + (middle >> 32) + (other >> 32));
#endif
}

template <class T> uint64_t load(const char *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

std::string where(const char *what, size_t i) {
  return std::string(what) + "[" + std::to_string(i) + "]";
}

} // namespace

uint64_t hash_text(std::string_view text) {
  constexpr uint64_t kA = 0xA0761D6478BD642F, kB = 0xE7037ED1A0B428DB;
  const char *p = text.data();
  size_t n = text.size();
  uint64_t state = seed() ^ n;
  for (; n > 16; p += 16, n -= 16)
    state = mix(load<uint64_t>(p) ^ kA, load<uint64_t>(p + 8) ^ state);
  uint64_t a = 0, b = 0;
  if (n >= 8)
    a = load<uint64_t>(p), b = load<uint64_t>(p + n - 8);
  else if (n >= 4)
    a = load<uint32_t>(p), b = load<uint32_t>(p + n - 4);
  else if (n > 0)
    a = uint64_t(uint8_t(p[0])) << 16 | uint64_t(uint8_t(p[n / 2])) << 8 | uint8_t(p[n - 1]);
  return mix(a ^ kB, b ^ mix(state, kA));
}

uint64_t hash_pair(uint64_t key) { return mix(key ^ seed(), 0xA0761D6478BD642F ^ seed() >> 7); }

std::string_view Strings::at(size_t i, const char *what) const {
  const int64_t from = offsets[i], to = offsets[i + 1];
  if (from < 0 || to < from || uint64_t(to) > blob_size)
    throw Fault(where(what, i) + " lies outside its buffer");
  return {blob + from, size_t(to - from)};
}

int byte_value(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>')
    return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    if (c >= '0' && c <= '9')
      value = value * 16 + (c - '0');
    else if (c >= 'A' && c <= 'F')
      value = value * 16 + (c - 'A' + 10);
    else if (c >= 'a' && c <= 'f')
      value = value * 16 + (c - 'a' + 10);
    else
      return -1;
  }
  return value;
}

Vocabulary::Vocabulary(const Strings &tokens, const float *scores, const int32_t *types) {
  const size_t n = tokens.count;
  if (n == 0)
    throw Fault("tokenizer.ggml.tokens is empty; a vocabulary needs at least one token");
  if (n > kMaxTokens)
    throw Fault("tokenizer.ggml.tokens has " + std::to_string(n) + " entries; at most " +
                std::to_string(kMaxTokens) + " are accepted");
  size_t bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    const std::string_view text = tokens.at(i, "tokenizer.ggml.tokens");
    if (text.empty())
      throw Fault(where("tokenizer.ggml.tokens", i) + " is empty");
    if (text.size() > kMaxText)
      throw Fault(where("tokenizer.ggml.tokens", i) + " has " + std::to_string(text.size()) +
                  " bytes; at most " + std::to_string(kMaxText) + " are accepted");
    bytes += text.size();
  }
  if (bytes > 0xFFFFFFFF)
    throw Fault("tokenizer.ggml.tokens: more than 4 GiB of text");
  texts_.reserve(bytes);
  offsets_.reserve(n + 1);
  offsets_.push_back(0);
  attributes_.assign(n, Normal);
  byte_tokens_.fill(-1);
  slots_.assign(std::bit_ceil(n * 2), 0);
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < n; ++i) {
    const std::string_view text = tokens.at(i, "tokenizer.ggml.tokens");
    texts_ += text;
    offsets_.push_back(uint32_t(texts_.size()));
    longest_ = std::max(longest_, text.size());
    const uint64_t hash = hash_text(text);
    size_t slot = hash & mask;
    for (; slots_[slot]; slot = (slot + 1) & mask)
      if (slots_[slot] >> 32 == hash >> 32)
        if (const auto id = int32_t(uint32_t(slots_[slot]) - 1); this->text(id) == text)
          throw Fault(where("tokenizer.ggml.tokens", i) + " repeats token " + std::to_string(id) +
                      "; texts must be unique");
    slots_[slot] = (hash >> 32 << 32) | (i + 1);
    if (types) {
      static constexpr uint8_t kBits[] = {0, Normal, Unknown, Control, UserDefined, Unused, Byte};
      if (types[i] < 0 || types[i] > 6)
        throw Fault(where("tokenizer.ggml.token_type", i) + " is " + std::to_string(types[i]) +
                    "; allowed are 0 to 6");
      attributes_[i] = kBits[types[i]];
    }
    if (attributes_[i] == Byte) {
      const int value = byte_value(text);
      if (value < 0)
        throw Fault(where("tokenizer.ggml.tokens", i) +
                    " is a byte token but its text is not <0x00>"
                    " to <0xFF>");
      if (byte_tokens_[size_t(value)] >= 0)
        throw Fault(where("tokenizer.ggml.tokens", i) + " is a second token for byte " +
                    std::to_string(value));
      byte_tokens_[size_t(value)] = int32_t(i);
    }
  }
  if (const size_t bad = find_invalid(texts_); bad != std::string_view::npos) {
    const size_t i =
        size_t(std::upper_bound(offsets_.begin(), offsets_.end(), bad) - offsets_.begin());
    throw Fault(where("tokenizer.ggml.tokens", i - 1) + " is not valid UTF-8");
  }
  for (size_t i = 1; i < n; ++i) // a text must not begin inside the character that the last began
    if ((uint8_t(texts_[offsets_[i]]) & 0xC0) == 0x80)
      throw Fault(where("tokenizer.ggml.tokens", i) + " is not valid UTF-8");
  if (scores) {
    scores_.assign(scores, scores + n);
    for (size_t i = 0; i < n; ++i)
      if (!std::isfinite(scores[i]))
        throw Fault(where("tokenizer.ggml.scores", i) + " is not a finite number");
  }
}

int32_t Vocabulary::find(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t slot = hash & mask; slots_[slot]; slot = (slot + 1) & mask)
    if (slots_[slot] >> 32 == hash >> 32)
      if (const auto id = int32_t(uint32_t(slots_[slot]) - 1); this->text(id) == text)
        return id;
  return -1;
}

void Vocabulary::prefetch(uint64_t hash, int step) const {
  const uint64_t &slot = slots_[hash & (slots_.size() - 1)];
  if (step == 0)
    return prefetch_memory(&slot);
  if (slot >> 32 != hash >> 32)
    return;
  const uint32_t &offset = offsets_[uint32_t(slot) - 1];
  prefetch_memory(step == 1 ? static_cast<const void *>(&offset) : texts_.data() + offset);
}

} // namespace insula::tok
