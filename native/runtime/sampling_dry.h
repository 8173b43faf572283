// DRY ("don't repeat yourself", p-e-w,
// https://github.com/oobabooga/text-generation-webui/pull/5677): which tokens would carry on a
// repetition, and of what length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace insula {

// Token sequences across which nothing counts as repeated. Asked for every token of a context, so
// that most questions are one look into a table.
class SequenceBreakers {
public:
  // ids: at least one, none negative.
  void add(std::vector<int32_t> ids);

  // Whether the token alone is one.
  bool alone(int32_t id) const { return mark(id) & kAlone; }

  // How many of the window's last tokens come after the last breaker in it.
  size_t tokens_after(const int32_t *window, size_t n) const;

private:
  static constexpr uint8_t kAlone = 1, kBegins = 2;

  uint8_t mark(int32_t id) const {
    return static_cast<size_t>(id) < marks_.size() ? marks_[static_cast<size_t>(id)] : uint8_t{0};
  }

  std::vector<uint8_t> marks_;               // by id
  std::vector<std::vector<int32_t>> longer_; // of two tokens and more
};

struct DrySettings {
  double multiplier = 0.0; // <= 0: off
  double base = 1.75;
  int64_t allowed_length = 2;
  int64_t last_n = -1; // 0: none, -1: all
  SequenceBreakers breakers;

  // What a token loses that would carry on a repetition of `length` tokens; finite.
  double penalty(int32_t length) const;
};

class Repetitions {
public:
  // Fills `found` from the tokens of the window, none negative: linear in their number.
  void find(const DrySettings &settings, const int32_t *window, size_t n);

  // (id, length of the longest repetition it would carry on), each id once.
  const std::vector<std::pair<int32_t, int32_t>> &found() const { return found_; }

private:
  std::vector<int32_t> match_;   // by distance from the end
  std::vector<int32_t> longest_; // by id, length + 1; all zero between calls
  std::vector<std::pair<int32_t, int32_t>> found_;
};

} // namespace insula
