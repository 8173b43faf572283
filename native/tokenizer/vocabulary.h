// The checked vocabulary: token texts, scores, attributes, and text -> id.
// Invariants once constructed: at least one token and at most kMaxTokens; every text is non-empty,
// valid UTF-8, unique and at most kMaxText bytes; every score is finite; every byte token has the
// form <0xHH> and no byte has two.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace insula::tok {

constexpr size_t kMaxTokens = size_t(1) << 24, kMaxText = 65536;

// Strings of a file: string i is bytes offsets[i] to offsets[i + 1] of one buffer.
struct Strings {
  const char *blob = nullptr;
  size_t blob_size = 0;
  const int64_t *offsets = nullptr;
  size_t count = 0;

  // Throws Fault, naming `what`, when string i does not lie in the buffer.
  std::string_view at(size_t i, const char *what) const;
};

// GGUF's token types are the numbers 1..6; here they are bits, because a token that is looked up by
// name can become a control token besides what it was.
enum Attribute : uint8_t {
  Normal = 1,
  Unknown = 2,
  Control = 4,
  UserDefined = 8,
  Unused = 16,
  Byte = 32,
  StripRight = 64,
  StripLeft = 128
};

inline void prefetch_memory([[maybe_unused]] const void *address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
#endif
}

// Hash of a short string. Seeded once per process, so that no file can be made to collide.
uint64_t hash_text(std::string_view text);
uint64_t hash_pair(uint64_t key);

class Vocabulary {
public:
  // `scores` and `types` may be null (0 and normal).
  Vocabulary(const Strings &tokens, const float *scores, const int32_t *types);

  size_t size() const { return attributes_.size(); }
  std::string_view text(int32_t id) const {
    return {texts_.data() + offsets_[size_t(id)], offsets_[size_t(id) + 1] - offsets_[size_t(id)]};
  }
  int32_t find(std::string_view text) const { return find(text, hash_text(text)); } // -1: absent
  int32_t find(std::string_view text, uint64_t hash) const;
  // Ask for the memory that find() will need, step 0 to 2, each some time after the one before:
  // a lookup waits three times for memory, and many at once can share the waiting.
  void prefetch(uint64_t hash, int step) const;
  float score(int32_t id) const { return scores_.empty() ? 0.0f : scores_[size_t(id)]; }
  uint8_t attributes(int32_t id) const { return attributes_[size_t(id)]; }
  bool has(int32_t id, int bits) const { return attributes_[size_t(id)] & bits; }
  void set_attributes(int32_t id, uint8_t bits) { attributes_[size_t(id)] = bits; }
  int32_t byte_token(uint8_t byte) const { return byte_tokens_[byte]; } // -1 if absent
  size_t longest() const { return longest_; }

private:
  std::string texts_;
  std::vector<uint32_t> offsets_;
  std::vector<float> scores_;
  std::vector<uint8_t> attributes_;
  std::vector<uint64_t> slots_; // high half: hash, low half: id + 1; 0: free
  std::array<int32_t, 256> byte_tokens_;
  size_t longest_ = 0;
};

// The value of a text of the form <0xHH>, or -1.
int byte_value(std::string_view text);

} // namespace insula::tok
