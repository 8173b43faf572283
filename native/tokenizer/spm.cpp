#include "spm.h"
#include "unicode.h"
#include <algorithm>
#include <unordered_map>

namespace insula::tok {

struct SpmModel::Scratch {
  Merger merger;
  // Bytes of the left half of the last merge considered into each unused token: SentencePiece
  // takes such a token apart again.
  std::unordered_map<int32_t, uint32_t> halves;
};

SpmModel::SpmModel(const Vocabulary &vocabulary, bool add_space_prefix)
    : vocabulary_(vocabulary), add_space_prefix_(add_space_prefix), cutter_(vocabulary) {
  const auto n = int32_t(vocabulary.size());
  std::vector<float> scores;
  for (int32_t id = 0; id < n; ++id)
    scores.push_back(vocabulary.score(id));
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  ranks_.assign(size_t(n), kNoMerge);
  for (int32_t id = 0; id < n; ++id)
    if (vocabulary.has(id, Normal | UserDefined | Unused)) // never a control or byte token
      ranks_[size_t(id)] = uint32_t(
          std::lower_bound(scores.begin(), scores.end(), vocabulary.score(id), std::greater<>()) -
          scores.begin());
}

void SpmModel::emit(std::string_view text, int32_t id, const Scratch &scratch,
                    std::vector<int32_t> &out) const {
  if (id < 0)
    return append_byte_tokens(vocabulary_, text, out);
  if (vocabulary_.attributes(id) != Unused)
    return out.push_back(id);
  const auto half = scratch.halves.find(id);
  if (half == scratch.halves.end())
    return out.push_back(id);
  const std::string_view left = text.substr(0, half->second), right = text.substr(half->second);
  for (const std::string_view part : {left, right}) {
    const int32_t found = vocabulary_.find(part);
    emit(part, found >= 0 && ranks_[size_t(found)] != kNoMerge ? found : -1, scratch, out);
  }
}

void SpmModel::encode_word(std::string_view word, Scratch &scratch,
                           std::vector<int32_t> &out) const {
  Merger &merger = scratch.merger;
  merger.clear();
  const auto token = [this](std::string_view text) {
    const int32_t id = vocabulary_.find(text);
    return id >= 0 && ranks_[size_t(id)] != kNoMerge ? id : -1;
  };
  for (size_t i = 0; i < word.size();) {
    const size_t length = utf8_length(uint8_t(word[i]));
    merger.add(token(word.substr(i, length)), i);
    i += length;
  }
  // The right half is not needed: its length follows from the two ends, the left's from its id.
  merger.run(word.size(), [&](int32_t left, int32_t, uint32_t begin, uint32_t end) -> Merge {
    if (end - begin > vocabulary_.longest())
      return {};
    const int32_t id = token(word.substr(begin, end - begin));
    if (id < 0)
      return {};
    if (vocabulary_.attributes(id) == Unused)
      scratch.halves[id] =
          uint32_t(left >= 0 ? vocabulary_.text(left).size() : utf8_length(uint8_t(word[begin])));
    return {ranks_[size_t(id)], id};
  });
  for (size_t i = 0; i < merger.ids.size(); ++i) {
    const size_t end = i + 1 < merger.ids.size() ? merger.begins[i + 1] : word.size();
    emit(word.substr(merger.begins[i], end - merger.begins[i]), merger.ids[i], scratch, out);
  }
}

void SpmModel::encode(std::string_view text, bool at_start, std::vector<int32_t> &out) const {
  std::string marked = add_space_prefix_ && at_start ? std::string(kSpaceMark) : std::string();
  marked += mark_spaces(text);
  const std::string_view all = marked;
  WordCache cache(all.size());
  Scratch scratch;
  for (size_t at = 0; at < all.size();) {
    const size_t stop = cutter_.next(all, at);
    const std::string_view word = all.substr(at, stop - at);
    cache.append(word, out, [&] { encode_word(word, scratch, out); });
    at = stop;
  }
}

void SpmModel::piece(std::string_view token, std::string &out) const {
  append_unmarked(token, out);
}

} // namespace insula::tok
